"""Methods that learn from pairs."""
