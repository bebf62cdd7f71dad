"""Judges: verifiers of answers, votes, and language models that grade. A verdict is never a zero by accident."""
