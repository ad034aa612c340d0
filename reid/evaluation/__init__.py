"""The evaluate stage, its protocol, and search with a trained model."""
