"""Figures in, pictures and one HTML page out."""
