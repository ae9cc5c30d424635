"""From files and lists to a manifest."""
