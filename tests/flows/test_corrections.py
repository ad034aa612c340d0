"""Corrected captions in the flow: what runs again, and why."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from captioning.corrections import Corrections, Edit, ModelCaption
from data.artifacts.store import ArtifactStore
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from flows.preflight.check import missing, planned
from flows.recipes import build_recipe
from flows.summary import RunSummary
from tests.helpers.data_trees import settle
from tests.helpers.small_runs import ON_CPU, SMALL_RUN

USE = "caption.corrections=use"

pytestmark = pytest.mark.xdist_group("flow")


@pytest.fixture
def home(finished, tmp_path) -> Path:
    """A private copy of the finished run."""
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    settle()
    return copy


def recipe_of(*overrides: str):
    return build_recipe("demo", [*ON_CPU, *overrides], size=["synthetic.seed=7", *SMALL_RUN])


def run(home: Path, *overrides: str) -> RunSummary:
    from flows.pipeline import caption_and_train

    return RunSummary.model_validate(caption_and_train(recipe_of(*overrides), home=str(home)))


def reasons(summary: RunSummary) -> dict[str, str]:
    return {stage.stage: stage.reason for stage in summary.stages if stage.status == "ran"}


def rows(summary: RunSummary) -> pd.DataFrame:
    return pd.read_parquet(summary.captions.artifact.folder / "captions.parquet")


def correct(home: Path, row: pd.Series, text: str) -> None:
    against = ModelCaption(row["caption"], row["captioner_fingerprint"])
    kept = Corrections.open(home)
    now = kept.current([row["image_sha256"]]).get(row["image_sha256"])
    seen = now.revision if now else 0
    kept.save(row["image_sha256"], Edit.of_text(text), author="ada", expected_revision=seen, against=against)


def test_a_corrected_caption_trains_again_and_says_why(home, finished):
    model = rows(finished[1])
    trained, tested = model[model["split"] == "train"].iloc[0], model[model["split"] == "query"].iloc[0]
    text = "A young man is wearing a pink dress."
    correct(home, trained, text)
    assert reasons(run(home)) == {}  # ignored by default

    first = run(home, USE)
    why = reasons(first)
    assert list(why) == ["correct", "audit", "train", "evaluate", "report"]
    assert why["correct"] == "first run"
    assert why["train"] == "captions changed: 1 by corrections"
    assert first["correct"].note == "1 caption corrected"
    assert set(rows(first).query("source == 'human'")["caption"]) == {text}
    page = (first["report"].artifact.folder / "report.html").read_text()
    assert "1 of 44 are corrections by people or imported." in page
    assert reasons(run(home, USE)) == {}

    # A caption of a test image is not trained with.
    correct(home, tested, text)
    stages = planned(recipe_of(USE), "report")
    store = ArtifactStore(home)
    indexed = IndexedImages(ref=first["index"].artifact, root=Path(first["index"].images_root or ""))
    assert list(missing(RunContext(store=store, indexed=indexed), recipe_of(USE), stages)) == []
    why = reasons(run(home, USE))
    assert list(why) == ["correct", "audit", "report"]
    assert why["correct"] == "corrections changed: text 1 -> 2"

    correct(home, trained, "An old man is wearing a green coat.")
    assert "train" in missing(RunContext(store=store, indexed=indexed), recipe_of(USE), stages)
    assert reasons(run(home)) == {}
