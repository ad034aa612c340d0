"""Stage 1: images of people in, attribute captions in Parquet out. The only package that imports transformers."""
