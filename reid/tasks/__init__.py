"""Methods as tasks: a model with its losses."""
