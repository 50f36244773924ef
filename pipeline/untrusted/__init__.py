"""All that reads files of strangers: zips, pickles, pictures, weights. No code in them is run."""
