"""Raw recordings in, one HDF5 file a subject out; the EEG encoders, and the masks of the evaluation."""
