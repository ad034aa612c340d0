"""Embeddings of images and sentences by a trained model, for programs and for files."""
