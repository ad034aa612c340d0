"""A gallery: a store of embeddings with path, label, camera, time, captions and attributes, to search and to shrink."""
