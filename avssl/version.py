"""The version of this package. Imports no other module."""

__version__ = "0.1.0"
