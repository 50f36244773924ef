"""Trained models and test EEG in; similarities and metrics with their intervals out."""
