"""Overrides of the recipe demo for runs of seconds."""

from __future__ import annotations

SMALL_WORLD = [
    "synthetic.train_identities=6",
    "synthetic.test_identities=5",
    "synthetic.images_per_camera=2",
    "synthetic.cameras=2",
]
ONE_EPOCH = "train.schedule.epochs=1"
SMALL_BATCH = "train.batch.identities=3"
"""Half of the training identities of `SMALL_WORLD`."""
SMALL_RUN = [*SMALL_WORLD, SMALL_BATCH, ONE_EPOCH]
