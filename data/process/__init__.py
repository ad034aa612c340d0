"""Processes and threads: environment, children, file locks, reading ahead."""
