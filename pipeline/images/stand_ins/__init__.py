"""Random weights in the published layouts, so that the sample dataset needs no network."""
