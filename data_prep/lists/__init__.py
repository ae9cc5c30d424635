"""Lists of files that others published or that you wrote, read row by row. The formats stand in formats.py."""
