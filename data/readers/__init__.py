"""Readers, one module per family of datasets: each turns a folder into a `Scan` without opening an image.

`data.datasets` selects the reader.
"""
