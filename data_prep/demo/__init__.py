"""The synthesized corpus of `make demo`: moving shapes with audio that matches them."""
