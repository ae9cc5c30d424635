"""Views of a clip: which seconds, what is drawn for them, and the operations on frames and sound."""
