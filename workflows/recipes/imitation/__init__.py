"""Methods that learn from responses."""
