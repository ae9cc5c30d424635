"""Tests of avssl."""
