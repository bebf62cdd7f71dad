"""Methods that learn from rewards."""
