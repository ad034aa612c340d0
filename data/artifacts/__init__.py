"""Artifacts: result folders, each named by the fingerprint of its ingredients."""
