"""Chooses the samples of a corpus that are worth training on, by facts about them, and says why the others are not."""
