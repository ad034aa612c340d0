"""Checks with a wanted and a found value, run part by part in processes of their own: see `checks.runner`."""
