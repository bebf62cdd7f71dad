"""Which rows are learned from: pure functions of a prompt group."""
