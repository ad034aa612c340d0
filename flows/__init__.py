"""The DAG: recipes, the Prefect flow caption-and-train, its report and the command line."""
