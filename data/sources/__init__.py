"""Where images lie: a local folder, or an object store that fsspec reads."""
