"""Reading numbers, choices and LaTeX out of a response."""
