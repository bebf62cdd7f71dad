"""Rows as arrays, optimizer steps and micro-batches."""
