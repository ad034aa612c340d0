"""Rows of a table of images, as a manifest or the samples of shards have them, and the records made of them."""
