"""The oracle of a study: scores with true attributes, against a ranking by hand, and its bounds of text to image."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.errors import DataError
from data.index.stage import index
from data.slots import SLOTS
from data.synthetic.world import WorldConfig, write_market1501
from flows.study.controls import TRUTH
from flows.study.oracle import (
    Attributes,
    Errors,
    Room,
    errors_of,
    oracle_scores,
    oracles,
    room_of,
    text_oracle,
    true_attributes,
)
from reid.config.evaluate import EvaluateConfig
from reid.config.train import TrainConfig
from reid.evaluation.features import FeatureStage
from reid.inputs.evaluation_rows import EvaluationRows, RankingSplit, evaluation_rows
from reid.ranking.metrics import evaluate_ranking, similarities
from tests.helpers.image_rows import image_rows
from tests.helpers.stages import run_on


def rows_of(pids, camids, n_query: int, exclude="same_camera") -> EvaluationRows:
    """Return test images of which the first `n_query` are the queries."""
    split = ["query"] * n_query + ["gallery"] * (len(pids) - n_query)
    images = image_rows(split, pids, camids)
    splits = [RankingSplit(slice(0, n_query), slice(n_query, len(pids)), exclude)]
    return EvaluationRows(images, splits, False, 0, (), True)


def attributes_of(codes, seen=None) -> Attributes:
    codes = np.array(codes)
    return Attributes(codes, np.ones(codes.shape, bool) if seen is None else np.array(seen, bool))


def random_case(seed: int):
    rng = np.random.default_rng(seed)
    count, n_query = 90, 25
    rows = rows_of(rng.integers(0, 8, count), rng.integers(1, 4, count), n_query)
    features = rng.integers(-2, 3, (count, 3)).astype(np.float32) + np.float32(0.1)  # with ties
    return rows, features, attributes_of(rng.integers(0, 2, (count, 3)), rng.random((count, 3)) < 0.7)


def agree(attributes: Attributes, one: int, other: int, *, visible: bool) -> bool:
    slots = range(attributes.codes.shape[1])
    compared = [s for s in slots if not visible or (attributes.seen[one, s] and attributes.seen[other, s])]
    return all(attributes.codes[one, s] == attributes.codes[other, s] for s in compared)


def by_hand(rows, features, attributes, *, visible: bool) -> dict[str, float]:
    """Sort the gallery of each query by (shares the attributes, similarity, place)."""
    images, split = rows.images, rows.splits[0]
    n_query = split.query.stop
    scores = similarities(features[split.query], features[split.gallery])
    found = []
    for query in range(n_query):
        kept = [
            place
            for place in range(n_query, len(images))
            if (images.pid[place], images.camid[place]) != (images.pid[query], images.camid[query])
        ]
        kept.sort(key=lambda at: (not agree(attributes, query, at, visible=visible), -scores[query, at - n_query], at))
        hits = [rank for rank, at in enumerate(kept, start=1) if images.pid[at] == images.pid[query]]
        if hits:
            ap = np.mean([number / rank for number, rank in enumerate(hits, start=1)])
            found.append((ap, len(hits) / hits[-1], *(hits[0] <= rank for rank in (1, 5, 10))))
    return dict(zip(("mAP", "mINP", "rank1", "rank5", "rank10"), np.mean(found, axis=0), strict=True))


@pytest.mark.parametrize("visible", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_oracle_is_the_ranking_by_two_keys(seed, visible):
    rows, features, attributes = random_case(seed)
    expected = by_hand(rows, features, attributes, visible=visible)
    assert oracle_scores(features, rows, attributes, visible=visible) == pytest.approx(expected, abs=1e-12)


def test_attributes_that_all_images_share_leave_the_evaluation_as_it_is():
    rows, features, attributes = random_case(1)
    same = attributes._replace(codes=np.zeros_like(attributes.codes))
    q, g = (rows.splits[0].query, rows.splits[0].gallery)
    pid, camid = rows.images.pid, rows.images.camid
    plain = evaluate_ranking(features[q], features[g], pid[q], pid[g], camid[q], camid[g])
    found = oracle_scores(features, rows, same)
    assert (found["mAP"], found["mINP"], found["rank1"]) == (plain.mAP, plain.mINP, plain.cmc[0])


def test_neighbors_by_the_last_bit_keep_their_order():
    """Similarities that differ by the last bit of float32 are told apart within each part."""
    angle = np.linspace(0, 2e-3, 40)
    features = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    scores = similarities(features[:1], features[1:])[0]
    assert 10 < len(np.unique(scores)) < len(scores)
    assert len(np.unique(scores + np.float32(1e6))) == 1
    pids = np.arange(40) % 3
    rows = rows_of(pids, [1] + [2] * 39, 1)
    attributes = attributes_of([[place % 2] for place in range(40)])
    expected = by_hand(rows, features, attributes, visible=False)
    assert oracle_scores(features, rows, attributes) == pytest.approx(expected)


def test_it_gains_if_attributes_name_people_and_loses_if_they_name_clothes():
    features = np.array([[1, 0], [0, 1], [1, 0.1], [1, 0.2]], np.float32)
    rows = rows_of([1, 1, 2, 3], [1, 2, 2, 3], 1)
    assert oracle_scores(features, rows, attributes_of([[0], [1], [2], [3]]))["mAP"] == 1 / 3
    assert oracle_scores(features, rows, attributes_of([[0], [0], [1], [1]]))["mAP"] == 1
    near = np.array([[1, 0], [1, 0.1], [0, 1], [0, 2]], np.float32)
    assert oracle_scores(near, rows, attributes_of([[0], [1], [2], [3]]))["mAP"] == 1
    assert oracle_scores(near, rows, attributes_of([[0], [1], [0], [0]]))["mAP"] == 1 / 3


def test_scores_of_drawn_galleries_are_means():
    rows, features, attributes = random_case(2)
    q = rows.splits[0].query.stop
    halves = [RankingSplit(slice(0, q), np.arange(start, len(rows.images), 2), "none") for start in (q, q + 1)]
    each = [oracle_scores(features, rows._replace(splits=[half]), attributes) for half in halves]
    both = oracle_scores(features, rows._replace(splits=halves), attributes)
    assert both == pytest.approx({name: (each[0][name] + each[1][name]) / 2 for name in both})


def test_wrong_first_images_are_counted():
    """Query 0 finds a lookalike, query 1 somebody with other attributes, query 2 its person."""
    features = np.eye(6, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    rows = rows_of([1, 2, 3, 2, 1, 3], [1, 1, 1, 2, 2, 2], 3)
    attributes = attributes_of([[5], [5], [6], [5], [7], [6]])
    assert errors_of(features, rows, attributes) == Errors(queries=3, wrong=2, alike=1)


def test_room_counts_people_and_their_descriptions():
    """Person 1 has two outfits, one of which person 2 has too; the distractor does not count."""
    rows = rows_of([1, 2, 1, 1, 2, 3, 0], [1, 1, 2, 3, 2, 1, 1], 2)
    attributes = attributes_of([[0], [0], [1], [0], [0], [2], [9]])
    assert room_of(rows, attributes) == Room(images=6, people=3, descriptions=3, sharing=2)


@pytest.mark.parametrize("seed", range(8))
def test_text_to_image_is_the_mean_over_all_orders(seed):
    rng = np.random.default_rng(seed)
    rows = rows_of([1, 1, *rng.integers(1, 3, 5)], [1] * 7, 1)
    attributes = attributes_of(rng.integers(0, 2, (7, 2)), rng.random((7, 2)) < 0.7)
    named = [slot for slot in range(2) if attributes.seen[0, slot]]
    matches = [all(attributes.codes[0, s] == attributes.codes[at, s] for s in named) for at in range(1, 7)]
    right = rows.images.pid[1:] == 1
    scores = []
    for order in permutations(range(6)):
        ranked = sorted(order, key=lambda at: not matches[at])
        hits = [rank for rank, at in enumerate(ranked, start=1) if right[at]]
        scores.append((np.mean([number / rank for number, rank in enumerate(hits, start=1)]), hits[0] == 1))
    mean_ap, rank1 = np.mean(scores, axis=0)
    assert text_oracle(rows, attributes) == pytest.approx({"mAP": mean_ap, "rank1": rank1})


def test_lookalikes_bound_text_to_image():
    rows = rows_of([1, 3, 1, 2, 0], [1, 1, 1, 1, 1], 2)  # person 3 is not in the gallery and does not count
    assert text_oracle(rows, attributes_of([[0], [0], [0], [0], [1]])) == {"mAP": 0.75, "rank1": 0.5}
    assert text_oracle(rows, attributes_of([[0], [0], [0], [1], [1]])) == {"mAP": 1, "rank1": 1}


@pytest.fixture(scope="module")
def drawn(module_folder):
    """A world in which clothes change, indexed, and the stage that encodes its test images with the untrained model."""
    folder = module_folder("oracle")
    world = WorldConfig(
        seed=6, train_identities=1, test_identities=4, images_per_camera=2, cameras=2, lookalikes=2, clothes=2,
        distractors=1, junk=1,
    )  # fmt: skip
    root = write_market1501(folder / "images", world)
    store = ArtifactStore(folder / "home")
    images = index(store, config=DatasetConfig(root=str(root))).images
    return run_on(store, images.ref, images.root), FeatureStage(
        model=TrainConfig(), config=EvaluateConfig(device="cpu")
    )


def test_attributes_are_those_of_each_image(drawn):
    run, stage = drawn
    rows = evaluation_rows(run.images, stage.config)
    attributes = true_attributes(run.images, rows)
    truth = pd.read_parquet(run.images.root / TRUTH).set_index("path").loc[rows.images.path]
    for place, slot in enumerate(SLOTS):
        assert pd.Series(attributes.codes[:, place]).nunique() == truth[slot].nunique()
        assert (attributes.seen[:, place] == truth[f"visible_{slot}"]).all()
    assert room_of(rows, attributes) == Room(images=16, people=4, descriptions=4, sharing=4)


def test_it_reads_features_or_encodes_the_images(drawn, tmp_path):
    run, stage = drawn
    encoded = list(oracles(stage, run, tmp_path))
    assert stage.find(run) is None
    stage.make(run)
    assert list(oracles(stage, run, tmp_path)) == encoded
    assert [(oracle.model, oracle.mode) for oracle in encoded] == [("untrained", "image")]
    assert encoded[0].scores["rank1"] == 0, "everybody's clothes of the query's camera are a lookalike's"
    assert encoded[0].errors.queries == 8


def test_images_without_attributes_are_refused(drawn, tmp_path):
    run, stage = drawn
    truth = run.images.root / TRUTH
    kept = truth.read_bytes()
    pd.read_parquet(truth).query("split == 'query'").to_parquet(truth)
    with pytest.raises(DataError, match=r"attributes\.parquet lacks 9 images, such as bounding_box_test/"):
        list(oracles(stage, run, tmp_path))
    truth.write_bytes(kept)
