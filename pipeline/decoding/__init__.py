"""Prepared EEG and cached embeddings in, trained models out: the contrastive model, its training, a protocol's runs."""
