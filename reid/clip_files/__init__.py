"""Naming and position grids of CLIP weight files."""
