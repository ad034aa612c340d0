"""Stage 2: captions and images become a trained model, and the model becomes metrics."""
