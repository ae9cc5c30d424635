"""A manifest divided into train, validation and test."""
