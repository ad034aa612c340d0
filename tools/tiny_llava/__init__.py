"""Training and evaluation of the embedded tiny LLaVA."""
