"""Columns of millions of rows as Arrow and NumPy arrays: digests, distinct values, JSON of rows, and rows in order."""
