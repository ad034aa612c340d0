"""Slot-filling decoding: fixed text around values that the model chooses."""
