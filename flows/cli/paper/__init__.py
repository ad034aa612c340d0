"""The commands ``clip-scgi paper``."""
