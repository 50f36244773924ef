"""Raw recordings in, one HDF5 file a subject out."""
