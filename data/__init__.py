"""Code that both stages share: readers, schemas, fingerprints, the artifact store and synthetic people.

Nothing in this package imports torch or prefect.
"""
