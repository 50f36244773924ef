"""All that reads what strangers wrote: zips, pickles and pictures. Nothing in them is run or believed."""
