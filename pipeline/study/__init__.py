"""A whole grid of runs in; its table, what it answers and how sure that is out."""
