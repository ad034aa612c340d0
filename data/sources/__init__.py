"""Where images lie: a local folder, an object store that fsspec reads, or tar shards in either."""
