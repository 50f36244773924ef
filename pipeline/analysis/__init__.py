"""Trained models and test EEG in; similarities, metrics with their intervals and the comparison of two runs out."""
