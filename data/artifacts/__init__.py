"""Artifacts: folders of results, named by the fingerprint of what they were made from."""
