"""Checks of settings, index and machine before the hours are spent."""
