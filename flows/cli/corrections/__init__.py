"""The group of commands ``clip-scgi corrections``: import, export, info and log."""
