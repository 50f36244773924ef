"""A trained model put to use: new EEG in, the nearest pictures of any gallery out."""
