"""Datasets for person search by text: images with sentences about the person, in one JSON file."""
