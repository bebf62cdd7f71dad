"""Judges that are prompts for a model."""
