"""Reading media: what a file is, and the frames and samples of any time in it."""
