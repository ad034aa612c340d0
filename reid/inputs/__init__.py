"""Inputs of training and evaluation: rows, pixels, batches, augmentation, caption features, embeddings."""
