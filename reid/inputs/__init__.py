"""What training and evaluation read: rows, pixels, batches, augmentation, caption features, embeddings."""
