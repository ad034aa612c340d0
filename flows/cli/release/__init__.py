"""The commands that release a trained model to other programs."""
