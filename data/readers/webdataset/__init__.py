"""WebDataset tar shards, whose images are read in place."""
