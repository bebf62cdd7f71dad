"""Weights on their way from the trainer to the engines, and their proof."""
