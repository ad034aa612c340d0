"""The index stage: every image of a dataset, hashed and decoded once."""
