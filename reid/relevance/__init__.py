"""Relevance: which parts of an image a model looks at, and whether that claim is faithful to the model."""
