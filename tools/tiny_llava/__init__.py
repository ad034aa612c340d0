"""Training of the embedded tiny LLaVA."""
