"""Prepared EEG and cached embeddings in, trained models out."""
