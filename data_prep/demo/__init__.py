"""The embedded corpus of `make demo`: shapes that move, with sounds that go with them."""
