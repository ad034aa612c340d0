"""Several workers of one run: threads or processes of this machine, or a Ray cluster."""
