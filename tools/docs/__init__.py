"""Helpers of the documentation site (mkdocs.yml)."""
