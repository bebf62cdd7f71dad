"""A model folder, read without torch."""
