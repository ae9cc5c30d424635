"""Embeddings: encoding windows of files and shards, tables of rows, and search in them."""
