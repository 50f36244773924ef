"""Readers of strangers' files: zips, pickles, pictures. Nothing in them is run or believed."""
