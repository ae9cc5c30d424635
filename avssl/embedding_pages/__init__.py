"""Pages of embeddings, each one HTML file that plays: the results of a search, and what a folder holds."""
