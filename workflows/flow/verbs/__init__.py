"""What recipes can do to rows: an op for each verb."""
