"""The caption store: Parquet shards, keyed by image content and captioner."""
