"""Checks of settings, dataset, weights, devices and disk before a run starts."""
