"""Comparison of finished evaluations: paired differences over the same queries, as objects, text and page."""
