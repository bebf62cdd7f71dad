"""Measuring: accuracy with intervals, votes, flips, win rates, ratings, and the quality of judges."""
