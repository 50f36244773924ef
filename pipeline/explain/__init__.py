"""What lies behind the score of an evaluation, from files that are there; nothing is trained."""
