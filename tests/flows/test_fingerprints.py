"""Fingerprints are frozen: a change of the code that is not meant to rerun a stage leaves every one of them as it is.

    python -m tests.flows.test_fingerprints

writes the golden file anew, after a change that is meant to (which CHANGELOG.md then names).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest

from captioning.audit.stage import AuditStage
from captioning.stage.stage import CaptionStage
from data.artifacts.fingerprint import digest
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.files import write_table
from data.schemas import CAPTIONS, IMAGES
from flows.recipes import RECIPES, build_recipe
from reid.training.stage import TrainStage
from tests.helpers.stages import describe_by_hand, make_artifact, run_on

GOLDEN = Path(__file__).parents[1].joinpath("golden", "fingerprints.json")
STAGES = ("data", "caption", "audit", "train", "evaluate", "report")


def identities(name: str) -> dict[str, str]:
    """Return stage -> digest of the settings of a recipe that can change its result."""
    recipe = build_recipe(name)
    parts = {stage: getattr(recipe, stage) for stage in STAGES}
    return {stage: digest(part.identity())[:16] for stage, part in parts.items()}


def artifacts(store: ArtifactStore) -> tuple[ArtifactRef, ArtifactRef]:
    """Make an index and captions of twelve images of six people by hand."""
    rows = [
        {"path": f"{pid}_{camid}.jpg", "split": split, "pid": pid, "camid": camid, "sha256": f"{pid:032d}{camid:032d}"}
        | {"size": 100, "width": 64, "height": 128}
        for pid in range(1, 7)
        for camid, split in ((1, "train" if pid < 4 else "query"), (2, "train" if pid < 4 else "gallery"))
    ]

    def images(folder: Path) -> None:
        write_table(folder / "images.parquet", pa.Table.from_pylist(rows, schema=IMAGES), IMAGES)
        describe_by_hand(folder)

    def captions(folder: Path) -> None:
        table = [
            dict.fromkeys(CAPTIONS.names)
            | {"image_path": row["path"], "image_sha256": row["sha256"], "split": row["split"], "pid": row["pid"]}
            | {"camid": row["camid"], "caption": f"Person {row['pid']}.", "raw_text": "x", "status": "ok"}
            | {"template_id": "scgi", "truncated": False}
            for row in rows
        ]
        write_table(folder / "captions.parquet", pa.Table.from_pylist(table, schema=CAPTIONS), CAPTIONS)

    return make_artifact(store, "index", {"by": "hand"}, images).ref, make_artifact(
        store, "caption", {"by": "hand"}, captions
    ).ref


def fingerprints(store: ArtifactStore, name: str) -> dict[str, str]:
    """Return stage -> fingerprint of a recipe with embedded models, on images and captions made by hand."""
    recipe = build_recipe(name, ["caption.device=cpu"])  # the dtype `auto` depends on the device
    images, captions = artifacts(store)
    run = run_on(store, images)
    stages = (
        CaptionStage(config=recipe.caption),
        AuditStage(captions=captions, config=recipe.audit),
        TrainStage(captions=captions, config=recipe.train),
    )
    return {stage.name: stage.plan(run).fingerprint[:16] for stage in stages}


TINY = sorted(name for name in RECIPES if name.startswith(("demo", "pku_reid", "benchmark", "folders", "images")))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_settings_of_every_recipe_are_known_by_the_same_digests(name):
    assert identities(name) == json.loads(GOLDEN.read_text())["settings"][name]


@pytest.mark.parametrize("name", TINY)
def test_stages_with_embedded_models_have_the_same_fingerprints(tmp_path, name):
    assert fingerprints(ArtifactStore(tmp_path), name) == json.loads(GOLDEN.read_text())["stages"][name]


def main() -> None:
    """Write the golden file."""
    with tempfile.TemporaryDirectory() as folder:
        stages = {name: fingerprints(ArtifactStore(Path(folder) / name), name) for name in TINY}
    golden = {"settings": {name: identities(name) for name in sorted(RECIPES)}, "stages": stages}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
