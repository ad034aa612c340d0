"""Commands that score a trained model and compare runs."""
