"""Pictures and a checkpoint in, the embedding cache out: the frozen image models, how they are run, what is kept."""
