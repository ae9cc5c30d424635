"""Views of a clip: its times, its random parameters, and the operations on frames and audio."""
