"""A page to explore embeddings on: what it asks of the rows, the clips that it plays, the server that guards both."""
