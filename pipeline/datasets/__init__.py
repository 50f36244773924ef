"""The datasets, a file each: where its files are published, and what they become: images, names and EEG."""
