"""The EEG encoders, a file each, and the table of their names."""
