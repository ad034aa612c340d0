"""How stages run: the Prefect server, GPU slots, several processes, and what Prefect's UI shows."""
