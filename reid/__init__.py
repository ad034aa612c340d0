"""Stage 2: train a model on images and captions, evaluate it, and search with it."""
