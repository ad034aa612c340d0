"""Slot-filling decoding: fixed words around values that the model chooses."""
