"""Runs of the recipe demo that take seconds."""

from __future__ import annotations

from pathlib import Path

from flows.recipes import build_recipe
from flows.summary import RunSummary

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
ON_CPU = ["caption.device=cpu", "train.device=cpu", "evaluate.device=cpu"]
FINISHED_RUN = ["synthetic.seed=7", *SMALL_RUN, *ON_CPU]
"""Settings of the run that the fixture `finished` made; equality to the bit is promised on the CPU."""

SMALL_MODEL = [
    "synthetic.seed=11",
    "synthetic.train_identities=4",
    "synthetic.test_identities=3",
    "synthetic.images_per_camera=2",
    "synthetic.cameras=2",
    ONE_EPOCH,
    SMALL_BATCH,
    "train.batch.images=2",
    "train.device=cpu",
    "evaluate.device=cpu",
]
"""The smallest demo that trains a model to search or to explain with."""


def demo_run(home: Path) -> RunSummary:
    """Caption, train and evaluate eleven synthetic people with the embedded models. Prefect's test server must run."""
    from flows.pipeline import caption_and_train  # Prefect reads its settings when it is first imported

    recipe = build_recipe("demo", size=FINISHED_RUN)
    return RunSummary.model_validate(caption_and_train(recipe, home=str(home)))
