"""The frozen image models: published checkpoints in, functions from pixels to embeddings out."""
