"""Prompts of the captioning model, and the form and cleaning of its replies."""
