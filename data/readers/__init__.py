"""Readers: one module a family of data sets, each turning a folder into a `Scan`. They open no image.

`data.datasets` is the entry point.
"""
