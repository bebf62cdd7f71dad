"""CPU work beside the models."""
