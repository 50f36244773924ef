"""The datasets: raw files as they are published, or made here, in; EEG, image names and pictures out. Nothing read is
believed."""
