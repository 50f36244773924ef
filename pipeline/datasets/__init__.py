"""The datasets, a file each: where the files are, and what is made of them."""
