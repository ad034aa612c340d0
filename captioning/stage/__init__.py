"""The caption stage: find images without a caption, caption them, and write captions.parquet."""
