"""The trainer: rows and an objective become new weights."""
