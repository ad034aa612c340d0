"""Features, the breakdown per camera pair and attribute, and the files for download, against plain computations."""

from __future__ import annotations

import json
import random
import shutil
import statistics
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.artifacts.store import ArtifactRef, ArtifactStore
from data.errors import DataError
from data.files import write_table
from reid.config.evaluate import EvaluateConfig, RerankConfig
from reid.config.train import TrainConfig, ValidationConfig
from reid.embedding.embedder import Embedder
from reid.embedding.files import embed_files
from reid.embedding.images import ImageFile
from reid.evaluation.breakdown import ATTRIBUTES, CAMERA_PAIRS, BreakdownStage
from reid.evaluation.download import RANK_LISTS, write_download
from reid.evaluation.features import load_features
from reid.evaluation.inputs import untrained_problem
from reid.evaluation.intervals import MIN_QUERIES
from reid.evaluation.stage import EvaluateStage
from reid.inputs.captions import weights_identity
from tests.helpers.small_models import write_model, write_world
from tests.helpers.stages import make_artifact, run_on

CONFIG = EvaluateConfig(device="cpu", batch_size=7)


@pytest.fixture(scope="module")
def world(module_folder):
    """A run on the toy images, and a model of CLIP-SCGI."""
    base = module_folder("breakdown")
    store = ArtifactStore(base / "home")
    return run_on(store, write_world(store, base / "images"), base / "images"), write_model(store)


def results_of(ref: ArtifactRef) -> list[dict]:
    return json.loads((ref.folder / "metrics.json").read_text())["results"]


def audit_of(store: ArtifactStore, majority: dict[tuple[int, str], str | None]) -> ArtifactRef:
    """Make an audit artifact with the majority value of (identity, slot)."""
    rows = [{"pid": pid, "slot": slot, "majority": value} for (pid, slot), value in majority.items()]
    table = pa.Table.from_pylist(rows)
    ingredients = {"rows": [list(row.values()) for row in rows]}
    return make_artifact(
        store, "audit", ingredients, lambda folder: write_table(folder / "identities.parquet", table, table.schema)
    ).ref


# Any model -------------------------------------------------------------------------------------------------------


def test_features_that_exist_are_read_and_change_nothing(world):
    run, model = world
    stage = EvaluateStage(model=model, config=CONFIG)
    fresh = results_of(stage.make(run).ref)
    assert stage.features.find(run) is None, "an evaluation does not keep features"
    made = stage.features.make(run).ref
    shutil.rmtree(stage.make(run).ref.folder)
    with_features = stage.make(replace(run, indexed=replace(run.images, root="/nowhere")))
    assert not with_features.cached
    assert results_of(with_features.ref) == fresh
    found = {(one.model, one.mode): one.features_ND.shape[0] for one in load_features(made)}
    modes = {"untrained": ("image", "joint"), "trained": ("image", "fused", "joint")}
    assert found == {(name, mode): 23 for name, own in modes.items() for mode in own}


def test_features_depend_on_the_encoders_and_not_on_the_protocol(world):
    run, model = world

    def key(**changes):
        settings = {name: changes.pop(name) for name in ("flip", "precision", "exclude", "top_k") if name in changes}
        config = CONFIG.model_copy(update=settings)
        return EvaluateStage(model=model, config=config, **changes).features.plan(run).fingerprint

    base = key()
    assert key(exclude="none") == key(top_k=3) == base
    assert len({base, key(flip=True), key(precision="bf16"), key(untrained=False)}) == 4


def test_zero_shot_is_the_untrained_row_of_a_trained_model(world):
    run, model = world
    config = TrainConfig(method="clip_scgi", device="cpu", seed=3)
    zero_shot = EvaluateStage(model=config, config=CONFIG).make(run)
    (row,) = results_of(zero_shot.ref)
    trained = results_of(EvaluateStage(model=model, config=CONFIG).make(run).ref)
    assert row == trained[0]
    assert (row["model"], row["mode"]) == ("untrained", "image")
    other = config.model_copy(update={"method": "clip_baseline"})
    assert EvaluateStage(model=other, config=CONFIG).make(run).cached, "the method of the training does not matter"


def test_without_the_untrained_model_only_its_row_is_missing(world):
    run, model = world
    both, alone = (EvaluateStage(model=model, config=CONFIG, untrained=untrained) for untrained in (True, False))
    assert "untrained" not in both.ingredients(run), "fingerprints of pipelines did not change"
    assert both.plan(run).fingerprint != alone.plan(run).fingerprint
    assert results_of(alone.make(run).ref) == results_of(both.make(run).ref)[1:]


def test_a_copied_folder_without_artifact_json_is_the_same_model(world, tmp_path):
    run, model = world
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(model.folder / name, tmp_path / name)
    copied = ArtifactRef(stage="train", fingerprint="f" * 32, content="c" * 32, path=str(tmp_path))
    stages = (EvaluateStage(model=ref, config=CONFIG) for ref in (model, copied))
    assert len({stage.plan(run).fingerprint for stage in stages}) == 1


@pytest.mark.parametrize(("source", "elsewhere"), [("toy", None), ("other", "other"), (None, None)])
def test_the_protocol_names_another_dataset_of_the_training(world, source, elsewhere):
    run, _ = world
    config = TrainConfig(
        method="clip_baseline", device="cpu", validation=ValidationConfig(every=1, keep="best", images="test")
    )
    provenance = {"dataset": source} if source else None
    made = EvaluateStage(model=write_model(run.store, config, provenance=provenance), config=CONFIG).make(run)
    protocol = json.loads((made.ref.folder / "metrics.json").read_text())["protocol"]
    assert protocol.get("trained_on") == elsewhere
    assert ("selected on these same images" in protocol["description"]) == (elsewhere is None)


def test_missing_or_other_start_weights_are_a_problem_of_the_untrained_model_only(world, tmp_path):
    run, model = world
    config = TrainConfig(method="clip_baseline", device="cpu", seed=3)
    known = weights_identity(run.store, config.backbone, config.seed)
    assert untrained_problem(model, run.store) == ""
    same = write_model(run.store, config, provenance={"dataset": "a", "weights": {**known, "activation": "gelu"}})
    assert untrained_problem(same, run.store) == ""
    other = write_model(run.store, config, provenance={"dataset": "a", "weights": known | {"files": {"x": "0" * 64}}})
    assert "is another file here than where it was trained" in untrained_problem(other, run.store)

    described = json.loads((model.folder / "config.json").read_text())
    described["config"]["backbone"]["weights"] = str(tmp_path / "away.safetensors")
    shutil.copyfile(model.folder / "model.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(described))
    moved = ArtifactRef(stage="train", fingerprint="f" * 32, content="c" * 32, path=str(tmp_path))
    assert "away.safetensors does not exist" in untrained_problem(moved, run.store)
    rows = results_of(EvaluateStage(model=moved, config=CONFIG, untrained=False).make(run).ref)
    assert [row["model"] for row in rows] == ["trained", "trained"]


def test_an_unknown_camera_of_a_camera_embedding_fails_before_any_image_is_encoded(world, tmp_path):
    store = ArtifactStore(tmp_path / "home")
    images = write_world(store, tmp_path / "images", cameras=6)
    model = write_model(store, TrainConfig(method="clip_baseline", device="cpu", sie=1.0))
    notes: list[str] = []
    run = run_on(store, images, tmp_path / "images", lambda done, total, note: notes.append(note))
    with pytest.raises(DataError, match=r"camera embeddings for \[1, 2, 3, 4\] only"):
        EvaluateStage(model=model, config=CONFIG).make(run)
    assert not [note for note in notes if note.startswith(("untrained", "trained"))]


# Breakdown -------------------------------------------------------------------------------------------------------


def brute_pairs(rows: pd.DataFrame, features: np.ndarray) -> dict[tuple[int, int], tuple[int, float, float, float]]:
    """Return (query camera, gallery camera) -> number of queries, mAP, mINP and R1, by sorting in float64."""
    unit = features.astype(float) / np.linalg.norm(features.astype(float), axis=1, keepdims=True)
    scores: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    for at, query in rows[rows["split"] == "query"].iterrows():
        gallery = rows[rows["split"] == "gallery"]
        for camera in sorted(gallery["camid"].unique()):
            part = gallery[gallery["camid"] == camera]
            part = part[~((part["pid"] == query["pid"]) & (part["camid"] == query["camid"]))]
            order = part.index[np.argsort(-(unit[part.index] @ unit[at]), kind="stable")]
            hits = [rank for rank, place in enumerate(order, 1) if rows["pid"][place] == query["pid"]]
            if hits:
                ap = statistics.fmean(n / rank for n, rank in enumerate(hits, 1))
                found = (ap, len(hits) / hits[-1], float(hits[0] == 1))
                scores.setdefault((query["camid"], camera), []).append(found)
    return {pair: (len(found), *map(statistics.fmean, zip(*found, strict=True))) for pair, found in scores.items()}


def test_camera_pairs_are_those_of_a_sort(world):
    run, model = world
    stage = EvaluateStage(model=model, config=CONFIG)
    folder = BreakdownStage(evaluation=stage).make(run).ref.folder
    table = pq.read_table(folder / "camera_pairs.parquet")
    assert table.schema.equals(CAMERA_PAIRS, check_metadata=True)
    rows = run.images.rows().to_pandas()
    rows = pd.concat([rows[rows["split"] == "query"], rows[(rows["split"] == "gallery") & (rows["pid"] >= 0)]])
    rows = rows.reset_index(drop=True)
    pairs = table.to_pandas()
    encoded_images = [one for one in load_features(stage.features.make(run).ref) if one.mode != "joint"]
    for encoded in encoded_images:
        expected = brute_pairs(rows, encoded.features_ND)
        own = pairs[(pairs["model"] == encoded.model) & (pairs["mode"] == encoded.mode)]
        assert list(zip(own["query_camid"], own["gallery_camid"], strict=True)) == sorted(expected)
        for row in own.itertuples():
            wanted = expected[row.query_camid, row.gallery_camid]
            assert (row.n_queries, row.mAP, row.mINP, row.rank1) == pytest.approx(wanted)
            here = (rows["split"] == "gallery") & (rows["camid"] == row.gallery_camid)
            assert row.n_gallery == here.sum()


def plain_interval(values: list[float]) -> tuple[float, float]:
    generator = random.Random(1)
    means = sorted(statistics.fmean(generator.choices(values, k=len(values))) for _ in range(4000))
    return means[100], means[3899]


def test_attributes_are_means_over_the_queries_of_identities_with_a_value(world):
    run, model = world
    majority = {(pid, "gender"): "male" if pid % 2 else "female" for pid in range(1, 6)}
    majority |= {(pid, "bag"): "backpack" if pid < 3 else None for pid in range(1, 7)}
    majority |= {(pid, "hat"): None for pid in range(1, 7)}
    stage = EvaluateStage(model=model, config=CONFIG.model_copy(update={"exclude": "none"}))
    broken = BreakdownStage(evaluation=stage, audit=audit_of(run.store, majority))
    table = pq.read_table(broken.make(run).ref.folder / "attributes.parquet")
    assert table.schema.equals(ATTRIBUTES, check_metadata=True)
    found = table.to_pandas()
    found["value"] = pd.Series(table["value"].to_pylist(), dtype=object)
    rankings = pd.read_parquet(stage.make(run).ref.folder / "rankings.parquet")
    own = found[(found["model"] == "trained") & (found["mode"] == "fused")]
    ranked = rankings[(rankings["model"] == "trained") & (rankings["mode"] == "fused")].set_index("query_pid")
    groups = {
        ("gender", "female"): [2, 4],
        ("gender", "male"): [1, 3, 5],
        ("gender", None): [6],  # not in the audit
        ("bag", "backpack"): [1, 2],
        ("bag", None): [3, 4, 5, 6],
    }
    assert list(zip(own["slot"], own["value"], strict=True)) == list(groups), "a slot that nobody names is left out"
    for row in own.itertuples():
        part = ranked.loc[groups[row.slot, row.value]]
        assert (row.n_queries, row.n_identities) == (len(part), len(part))
        assert row.mAP == pytest.approx(part["ap"].mean())
        assert row.mINP == pytest.approx(part["inp"].mean())
        assert [row.rank1, row.rank5] == pytest.approx([(part["first_hit"] <= rank).mean() for rank in (1, 5)])
        assert np.isnan(row.mAP_low), f"no interval below {MIN_QUERIES} queries"


def test_groups_of_enough_queries_have_an_interval(world):
    run, model = world
    stage = EvaluateStage(model=model, config=CONFIG)
    audit = audit_of(run.store, {(pid, "gender"): "male" for pid in range(1, 7)})
    table = pd.read_parquet(BreakdownStage(evaluation=stage, audit=audit).make(run).ref.folder / "attributes.parquet")
    row = table[(table["model"] == "trained") & (table["mode"] == "image")].iloc[0]
    whole = next(result for result in results_of(stage.make(run).ref) if result["model"] == "trained")
    assert (row["n_queries"], row["mAP"], row["rank1"]) == (6, whole["mAP"], whole["rank1"])
    ranked = pd.read_parquet(stage.make(run).ref.folder / "rankings.parquet")
    values = ranked[(ranked["model"] == "trained") & (ranked["mode"] == "image")]["ap"].tolist()
    assert (row["mAP_low"], row["mAP_high"]) == pytest.approx(plain_interval(values), abs=0.03)


@pytest.mark.parametrize("settings", [{"gallery_draws": 2}, {}])
def test_a_table_that_cannot_be_computed_is_empty(world, tmp_path, settings):
    run, model = world
    if not settings:
        run = run_on(run.store, write_world(run.store, tmp_path, cameras=0), tmp_path)
    stage = EvaluateStage(model=model, config=CONFIG.model_copy(update=settings))
    audit = audit_of(run.store, {(pid, "gender"): "male" for pid in range(1, 7)})
    folder = BreakdownStage(evaluation=stage, audit=audit).make(run).ref.folder
    assert len(pd.read_parquet(folder / "camera_pairs.parquet")) == 0
    assert (len(pd.read_parquet(folder / "attributes.parquet")) == 0) == bool(settings)


def test_a_breakdown_depends_on_evaluation_and_attributes(world):
    run, model = world
    stage = EvaluateStage(model=model, config=CONFIG)
    audits = [audit_of(run.store, {(1, "gender"): value}) for value in ("male", "female")]
    variants = [
        BreakdownStage(evaluation=stage),
        *(BreakdownStage(evaluation=stage, audit=audit) for audit in audits),
        BreakdownStage(evaluation=EvaluateStage(model=model, config=CONFIG.model_copy(update={"flip": True}))),
    ]
    assert len({variant.plan(run).fingerprint for variant in variants}) == 4


# Download --------------------------------------------------------------------------------------------------------


def test_features_for_download_are_those_of_embed(world, tmp_path):
    run, model = world
    stage = EvaluateStage(model=model, config=CONFIG)
    files = write_download(run, BreakdownStage(evaluation=stage), tmp_path / "new")
    assert [path.name for path in files] == [
        "camera_pairs.parquet",
        "features-trained-fused.parquet",
        "features-trained-image.parquet",
        "features-trained-joint.parquet",
        "features-untrained-image.parquet",
        "features-untrained-joint.parquet",
        "metrics.json",
        "rank_lists.parquet",
    ]
    rows = run.images.rows().to_pylist()
    images = [
        ImageFile(path=row["path"], sha256=row["sha256"], split=row["split"], pid=row["pid"], camid=row["camid"])
        for split in ("query", "gallery")
        for row in rows
        if row["split"] == split and row["pid"] >= 0
    ]
    embedder = Embedder.load(model, home=run.store.root, device="cpu")
    for mode in ("image", "fused", "joint"):
        out = tmp_path / f"{mode}.parquet"
        embed_files(embedder, images, root=run.images.root, out=out, mode=mode)
        ours, theirs = (pq.read_table(path) for path in (tmp_path / "new" / f"features-trained-{mode}.parquet", out))
        assert ours.schema.equals(theirs.schema, check_metadata=True)
        assert ours.drop(["embedding"]).equals(theirs.drop(["embedding"]))
        values = [np.stack(table["embedding"].to_pylist()) for table in (ours, theirs)]
        np.testing.assert_allclose(*values, atol=1e-5)
    untrained = pq.read_table(tmp_path / "new" / "features-untrained-image.parquet")["model_fingerprint"].unique()
    assert [name.startswith("untrained/") for name in untrained.to_pylist()] == [True]


@pytest.mark.parametrize("rerank", [None, RerankConfig(k1=4, k2=2)])
def test_rank_lists_are_the_rankings_one_row_per_place(world, tmp_path, rerank):
    run, model = world
    config = CONFIG.model_copy(update={"top_k": 5, "rerank": rerank, "flip": True})
    stage = EvaluateStage(model=model, config=config)
    write_download(run, BreakdownStage(evaluation=stage), tmp_path)
    table = pq.read_table(tmp_path / "rank_lists.parquet")
    assert table.schema.equals(RANK_LISTS, check_metadata=True)
    pids = dict(zip(*(run.images.rows("path", "pid")[name].to_pylist() for name in ("path", "pid")), strict=True))
    expected = [
        (row.model, row.mode, row.query_path, rank, path, score, pids[path] == pids[row.query_path])
        for row in pd.read_parquet(stage.make(run).ref.folder / "rankings.parquet").itertuples()
        for rank, (path, score) in enumerate(zip(row.top_paths, row.top_scores, strict=True), 1)
    ]
    assert list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True)) == expected
    assert any(row[-1] for row in expected)
    heading = json.loads(pq.read_schema(tmp_path / "features-trained-image.parquet").metadata[b"clip_scgi_features"])
    assert heading["flip"] is True, "these are not the features of embed"
