"""Files anywhere: paths and URLs, whole or absent, read within bounds."""
