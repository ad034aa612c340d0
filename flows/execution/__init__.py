"""Execution of stages: the Prefect server and its UI, slots for GPUs, and several processes."""
