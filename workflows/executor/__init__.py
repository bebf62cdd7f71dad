"""A graph over Ray."""
