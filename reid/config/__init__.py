"""Configs of training and evaluation, and the published settings."""
