"""How the pocket model was made and measured. A run imports nothing of it."""
