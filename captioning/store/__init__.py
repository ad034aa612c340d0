"""The caption store: append-only Parquet shards, keyed by image content and captioner."""
