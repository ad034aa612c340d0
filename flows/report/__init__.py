"""The report stage: scores, curves, retrieval and language of one run as a page."""
