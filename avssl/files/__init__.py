"""Local and remote files: written whole or not at all, and read within bounds."""
