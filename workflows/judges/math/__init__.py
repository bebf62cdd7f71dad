"""Answers that are mathematical expressions."""
