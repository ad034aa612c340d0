"""The contract both stages share: data sets, schemas, fingerprints, the artefact store and synthetic people.

Nothing in this package imports torch or prefect.
"""
