"""Long checks of the README's promises: `python -m tests.soak` runs them all and writes docs/promises.md."""
