"""What every HTML page of the project is made of: escaped markup, media inside the page, one style, players."""
