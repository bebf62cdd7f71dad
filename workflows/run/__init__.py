"""A run, whatever carries it out: decide, resume, take over, complete."""
