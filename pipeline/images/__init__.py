"""Pictures and a checkpoint in, the embedding cache out: the frozen image models at work."""
