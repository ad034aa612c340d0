"""Synthetic people: identities, cameras, and the drawing of their images."""
