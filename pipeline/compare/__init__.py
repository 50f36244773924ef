"""Two sets of runs that differ in one thing: their paired difference, and how sure it is."""
