"""The caption stage: which images lack a caption, the work on them, and captions.parquet."""
