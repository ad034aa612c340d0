"""Training of the embedded tiny CLIP."""
