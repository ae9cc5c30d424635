"""What a configuration may say, as far as it can be checked before PyTorch is loaded."""
