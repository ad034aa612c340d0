"""Methods as tasks: a model together with its losses."""
