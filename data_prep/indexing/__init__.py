"""The parts of `python -m data_prep index`: what is there, which seconds of it, and what probing finds."""
