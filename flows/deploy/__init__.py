"""Deployments on a Prefect server, and the flow that watches datasets for changes."""
