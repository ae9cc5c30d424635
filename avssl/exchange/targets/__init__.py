"""What `avssl export` writes: shards and embeddings in the forms that other programs read."""
