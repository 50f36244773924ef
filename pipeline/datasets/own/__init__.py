"""Recordings and pictures of the user's own: `dataset: own`."""
