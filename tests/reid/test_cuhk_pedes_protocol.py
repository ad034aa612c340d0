"""Search by text on a generated CUHK-PEDES tree, with scores that are worked out by hand.

Images and sentences are vectors in a plane, given by their angle in degrees: the nearest angle has the highest cosine.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.index.stage import index
from data.stages.stage import RunContext
from reid.config.evaluate import EvaluateConfig
from reid.evaluation.features import Encoded, FeatureStage
from reid.evaluation.stage import EvaluateStage
from reid.inputs.evaluation_rows import evaluation_rows
from tests.helpers.data_trees import described, put
from tests.helpers.small_models import write_model

# Path -> identity and angle of the image, then angle and sentence pairs. Only identities 1 to 3 are in the test.
TEST = {
    "cam_a/1.jpg": (12004, 0, {5: "A red coat.", 12: "A coat."}),
    "CUHK03/1.png": (12004, 50, {55: "A red coat, jeans."}),
    "cam_a/2.jpg": (12005, 20, {40: "A bag."}),
    "Market/2.jpg": (12005, 70, {72: "A green bag.", 88: "A woman with a bag."}),
    "CUHK01/3.png": (12006, 100, {100: "A white dress.", 62: "A dress."}),
}
# Sentence -> ranks of the images of its identity, from the angles above. "A coat." at 12 degrees: the image at 20 (8
# degrees away, another person) comes before those at 0 (12 away) and 50 (38 away), which are ranks 2 and 3.
RANKS = {
    "A red coat.": (1, 3),
    "A coat.": (2, 3),
    "A red coat, jeans.": (1, 5),
    "A bag.": (2, 3),
    "A green bag.": (1, 4),
    "A woman with a bag.": (2, 4),
    "A white dress.": (1,),
    "A dress.": (3,),
}
ANGLES = {text: angle for _, _, sentences in TEST.values() for angle, text in sentences.items()}


@pytest.fixture
def run(tmp_path):
    rows = [described("test", pid, path, *said.values()) for path, (pid, _, said) in TEST.items()]
    rows += [described("train", pid, f"train_query/{pid}.jpg", "A man.", "A coat.") for pid in (1, 2)]
    rows += [described("val", 11004, "CUHK03/val.png", "A red coat.", "A bag.")]
    root = tmp_path / "CUHK-PEDES"
    put(root, *(f"imgs/{row['file_path']}" for row in rows))
    (root / "reid_raw.json").write_text(json.dumps(rows))
    store = ArtifactStore(tmp_path / "home")
    return RunContext(
        store=store, indexed=index(store, config=DatasetConfig(reader="cuhk_pedes", root=str(root))).images
    )


def vectors(angles):
    radians = np.deg2rad(np.array(angles, dtype=np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


@pytest.fixture
def _in_a_plane(monkeypatch):
    def encoded(stage, run, scratch):
        paths = evaluation_rows(run.images, stage.config).images.path
        features = vectors([TEST[path.removeprefix("imgs/")][1] for path in paths])
        yield Encoded("trained", "image", features)
        yield Encoded("trained", "joint", features)

    monkeypatch.setattr(FeatureStage, "encoded", encoded)
    monkeypatch.setattr(
        "reid.evaluation.stage.sentence_features",
        lambda run, model, texts, **_: vectors([ANGLES[text] for text in texts]),
    )


@pytest.mark.usefixtures("_in_a_plane")
def test_scores_are_those_worked_out_by_hand(run):
    stage = EvaluateStage(model=write_model(run.store), config=EvaluateConfig(device="cpu"), untrained=False)
    folder = stage.make(run).ref.folder
    found = json.loads((folder / "metrics.json").read_text())["text_to_image"]
    assert (found["source"], found["n_sentences"], found["n_gallery"], found["n_skipped"]) == ("dataset", 8, 5, 0)
    (result,) = found["results"]
    # Four of eight sentences find their person first, seven among the first two, all among the first five.
    assert (result["rank1"], result["rank5"], result["rank10"]) == (0.5, 1.0, 1.0)
    # 5/6, 7/12, 7/10, 7/12, 3/4, 1/2, 1 and 1/3 sum to 317/60.
    assert result["mAP"] == pytest.approx(317 / 480)
    rankings = pd.read_parquet(folder / "text_rankings.parquet").set_index("sentence")
    assert {text: ranks[0] for text, ranks in RANKS.items()} == rankings["first_hit"].to_dict()
    for text, ranks in RANKS.items():
        pids = rankings.loc[text, "top_pids"]
        assert tuple(np.flatnonzero(pids == rankings.loc[text, "pid"]) + 1) == ranks
        precisions = [number / rank for number, rank in enumerate(ranks, start=1)]
        assert rankings.loc[text, "ap"] == pytest.approx(np.mean(precisions))
    first = rankings.loc["A coat.", "top_paths"]
    assert [path.removeprefix("imgs/") for path in first] == [
        *("cam_a/2.jpg", "cam_a/1.jpg", "CUHK03/1.png", "Market/2.jpg", "CUHK01/3.png"),
    ]


@pytest.mark.usefixtures("_in_a_plane")
def test_search_by_image_has_one_query_per_identity(run):
    stage = EvaluateStage(model=write_model(run.store), config=EvaluateConfig(device="cpu"), untrained=False)
    found = json.loads((stage.make(run).ref.folder / "metrics.json").read_text())
    # Queries CUHK03/1.png at 50, Market/2.jpg at 70 and CUHK01/3.png, which has no other image, against 0 and 20.
    # From 50, 20 (another person) is nearer than 0; from 70, 20 is the match and nearer.
    (result,) = found["results"]
    assert (result["n_valid_queries"], result["n_skipped_queries"]) == (2, 1)
    assert (result["rank1"], result["mAP"]) == (0.5, 0.75)
