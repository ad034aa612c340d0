"""The evaluate stage on the tiny model, and a test that an embedding does not depend on other images of its batch."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from data.artifacts.contents import image_contents
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.columns.lists import LIST_ROWS
from data.errors import DataError
from data.files import write_json, write_table
from data.schemas import IMAGES, RANKINGS
from data.stages.images import IndexedImages
from data.synthetic.world import training_sample
from reid.config.evaluate import EvaluateConfig, RerankConfig
from reid.config.train import ScgiConfig, TrainConfig
from reid.evaluation.protocol import COMPOSED_ONLY, NO_CAMERAS, camera_note, mode_notes, protocol
from reid.evaluation.search import search
from reid.evaluation.stage import EvaluateStage
from reid.inputs.embed import embed
from reid.inputs.evaluation_rows import check_test_split, drawn_split, evaluation_rows, has_match
from reid.ranking.metrics import evaluate_ranking
from reid.tasks.base import MEAN, STD
from reid.tasks.build import build_task
from reid.training.checkpoint import load_task, load_untrained
from tests.helpers.data_trees import TURNED
from tests.helpers.evaluations import write_index
from tests.helpers.small_models import SEED, write_model, write_world
from tests.helpers.stages import describe_by_hand, evaluate, make_artifact, run_on


@pytest.fixture(scope="module")
def world(module_folder):
    base = module_folder("evaluate")
    store = ArtifactStore(base / "home")
    return store, write_world(store, base / "images"), write_model(store), base / "images"


def run(world, **settings):
    store, images, model, root = world
    config = EvaluateConfig(device="cpu", batch_size=7, **settings)
    return evaluate(store, images=images, model=model, images_root=root, config=config)


def test_metrics_and_rankings_are_those_of_a_direct_computation(world):
    store, images, model, root = world
    made = run(world)
    assert not made.cached
    metrics = json.loads((made.ref.folder / "metrics.json").read_text())
    assert [(row["model"], row["mode"]) for row in metrics["results"]] == [
        ("untrained", "image"),
        ("trained", "image"),
        ("trained", "fused"),
    ]
    protocol = metrics["protocol"]
    assert {name: protocol[name] for name in ("dataset", "test_hash", "version", "n_query", "n_gallery")} == {
        "dataset": "toy",
        "test_hash": image_contents(images)["ranked"][:32],
        "version": "v1",
        "n_query": 6,
        "n_gallery": 17,
    }
    assert protocol["n_junk"] == 1
    assert "No re-ranking" in protocol["description"]

    rows = pq.read_table(images.folder / "images.parquet").to_pandas()
    batch = np.stack([np.asarray(Image.open(root / path)) for path in rows["path"]])
    batch = (torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    tasks = {"trained": load_task(model.folder), "untrained": load_untrained(TrainConfig(device="cpu", seed=3))}
    table = pd.read_parquet(made.ref.folder / "rankings.parquet")
    schema = pq.read_schema(made.ref.folder / "rankings.parquet")
    assert (schema.names, schema.metadata) == (RANKINGS.names, RANKINGS.metadata)
    query, gallery = (rows["split"] == "query").to_numpy(), (rows["split"] == "gallery").to_numpy()
    for row in metrics["results"]:
        with torch.no_grad():
            features = tasks[row["model"]].encoders()[row["mode"]](batch).numpy()
        pids, cams = rows["pid"].to_numpy(), rows["camid"].to_numpy()
        expected = evaluate_ranking(
            features[query], features[gallery], pids[query], pids[gallery], cams[query], cams[gallery]
        )
        assert row["mAP"] == pytest.approx(expected.mAP, abs=1e-9)
        assert row["mINP"] == pytest.approx(expected.mINP, abs=1e-9)
        assert row["cmc"] == pytest.approx(expected.cmc.tolist())
        assert [row["rank1"], row["rank5"], row["rank10"]] == pytest.approx(expected.cmc[[0, 4, 9]].tolist())
        assert (row["n_valid_queries"], row["n_skipped_queries"]) == (expected.n_valid, expected.n_skipped)
        shown = table[(table["model"] == row["model"]) & (table["mode"] == row["mode"])]
        assert shown["query_path"].tolist() == rows["path"][query].to_numpy()[expected.query_index].tolist()
        np.testing.assert_allclose(shown["ap"], expected.ap)
        for got, nearest in zip(shown.itertuples(), expected.top_index, strict=True):
            near = nearest[nearest >= 0]
            assert list(got.top_paths) == rows["path"][gallery].to_numpy()[near].tolist()
            assert list(got.top_pids) == pids[gallery][near].tolist()
            assert list(got.top_camids) == cams[gallery][near].tolist()
            assert (np.diff(got.top_scores) <= 0).all()
            assert -1 not in got.top_pids
    assert not store.scratch("evaluate", made.ref.fingerprint).exists()


def test_rankings_of_more_queries_than_are_written_at_a_time(tmp_path):
    """The rows of every block are those of sorting all scores"""
    store, rng = ArtifactStore(tmp_path), np.random.default_rng(0)
    count, n_gallery = LIST_ROWS + 5, 12
    rows = [
        {"path": f"{number:05d}.jpg", "split": split, "pid": pid, "camid": camid, "sha256": f"{number:064d}"}
        for number, (split, pid, camid) in enumerate(
            [("query", number % 4, 1) for number in range(count)]
            + [("gallery", number % 5, 1 + (number > 5)) for number in range(n_gallery)]
        )
    ]
    images = write_index(store, [{**row, "size": 1, "width": 1, "height": 1} for row in rows])
    features = rng.normal(size=(len(rows), 6)).astype(np.float32)
    config = EvaluateConfig(device="cpu", text_to_image="off", top_k=12)
    stage, run = EvaluateStage(model=TrainConfig(device="cpu", seed=3), config=config), run_on(store, images)

    def work(folder):
        write_json(folder / "features.json", [["untrained", "image"]])
        np.save(folder / "untrained-image.npy", features)

    make_artifact(store, "features", stage.features.ingredients(run), work)
    table = pd.read_parquet(stage.make(run).ref.folder / "rankings.parquet")
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    scores, gallery = unit[:count] @ unit[count:].T, rows[count:]
    assert table["query_path"].tolist() == [row["path"] for row in rows[:count]]
    for query, got in zip(range(count), table.itertuples(), strict=True):
        left = [at for at in np.argsort(-scores[query]) if (gallery[at]["pid"], gallery[at]["camid"]) != (query % 4, 1)]
        assert list(got.top_paths) == [gallery[at]["path"] for at in left]
        assert list(got.top_pids) == [gallery[at]["pid"] for at in left]
        assert list(got.top_camids) == [gallery[at]["camid"] for at in left]
        np.testing.assert_allclose(got.top_scores, scores[query][left], atol=1e-6)


def test_found_again_without_images_and_without_loading_any_model(world):
    store, images, model, _ = world
    made = run(world)
    script = f"""
import sys
from pathlib import Path
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.columns.lists import LIST_ROWS
from reid.config.evaluate import EvaluateConfig
from tests.helpers.stages import evaluate
made = evaluate(ArtifactStore(Path({str(store.root)!r})), images=ArtifactRef(**{images.to_json()!r}),
    model=ArtifactRef(**{model.to_json()!r}), images_root=Path("/nowhere"), config=EvaluateConfig(device="cpu"))
assert made.cached and made.ref.path == {made.ref.path!r}
heavy = [name for name in ("torch", "numba", "open_clip", "transformers") if name in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_settings_that_matter_and_only_those_change_the_key(world):
    store, images, model, _ = world

    def key(**settings):
        return EvaluateStage(model=model, config=EvaluateConfig(**settings)).ingredients(run_on(store, images))

    assert key() == key(batch_size=3, device="cpu")
    variants = [
        {},
        {"flip": True},
        {"exclude": "none"},
        {"rerank": RerankConfig()},
        {"top_k": 5},
        {"precision": "bf16"},
        {"gallery_draws": 3},
    ]
    assert len({json.dumps(key(**settings), sort_keys=True) for settings in variants}) == len(variants)


def test_reranking_flip_and_no_cameras_run_and_are_told(world):
    made = run(world, rerank=RerankConfig(k1=4, k2=2, weight=0.25), flip=True, exclude="none", top_k=5)
    metrics = json.loads((made.ref.folder / "metrics.json").read_text())
    text = metrics["protocol"]["description"]
    assert "k1 = 4, k2 = 2, lambda = 0.25" in text
    assert "mirrored" in text
    assert "Images are not excluded by camera" in text
    table = pd.read_parquet(made.ref.folder / "rankings.parquet")
    assert table["top_paths"].map(len).tolist() == [5] * 18
    assert all(row["n_skipped_queries"] == 0 for row in metrics["results"])


def test_unknown_cameras_are_evaluated_without_their_rule_and_told(world, tmp_path):
    store, _, model, _ = world
    images = write_world(store, tmp_path, cameras=0)
    made = evaluate(
        store, images=images, model=model, images_root=tmp_path, config=EvaluateConfig(device="cpu", batch_size=7)
    )
    metrics = json.loads((made.ref.folder / "metrics.json").read_text())
    assert metrics["protocol"]["cameras"] == "unknown"
    assert camera_note(metrics["protocol"]) == NO_CAMERAS
    assert "The cameras of this dataset are unknown, so images are not excluded" in metrics["protocol"]["description"]
    without = json.loads((run(world, exclude="none").ref.folder / "metrics.json").read_text())
    assert metrics["results"] == without["results"]
    assert camera_note(without["protocol"]) == ""
    (notice,) = check_test_split(IndexedImages(ref=images, root=tmp_path), EvaluateConfig())
    assert notice.startswith("the cameras of this dataset are unknown")
    assert check_test_split(IndexedImages(ref=images, root=tmp_path), EvaluateConfig(exclude="none")) == ()


# VehicleID --------------------------------------------------------------------------------------------


def _drawn(pids, seed):
    """One image per identity: the first of each in a seeded shuffle."""
    order = np.random.default_rng(seed).permutation(len(pids))
    first = {pid: place for place, pid in reversed([(place, pids[place]) for place in order])}
    gallery = np.array(sorted(first.values()))
    return np.setdiff1d(np.arange(len(pids)), gallery), gallery


def test_vehicleid_is_ten_random_galleries_with_mean_and_spread(tmp_path):
    store = ArtifactStore(tmp_path / "home")
    images = write_world(store, tmp_path / "images", reader="vehicleid")
    model = write_model(store, TrainConfig(method="clip_baseline", device="cpu", seed=3))
    made = run((store, images, model, tmp_path / "images"))
    metrics = json.loads((made.ref.folder / "metrics.json").read_text())
    rows = pq.read_table(images.folder / "images.parquet").to_pandas()
    rows = pd.concat([rows[rows["split"] == "query"], rows[(rows["split"] == "gallery") & (rows["pid"] >= 0)]])
    pids = rows["pid"].to_numpy()
    batch = np.stack([np.asarray(Image.open(tmp_path / "images" / path)) for path in rows["path"]])
    with torch.no_grad():
        encode = load_task(model.folder).encoders()["image"]
        features = encode((torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5).numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    expected = []
    for seed in range(10):
        query, gallery = _drawn(pids, seed)
        assert sorted(pids[gallery]) == sorted(set(pids.tolist())), "one image per identity"
        order = np.argsort(-(features[query] @ features[gallery].T), axis=1)
        places = 1 + (pids[gallery][order] == pids[query][:, None]).argmax(axis=1)
        expected.append({"mAP": (1 / places).mean(), "rank1": (places == 1).mean(), "rank5": (places <= 5).mean()})
    trained = metrics["results"][1]
    for name in ("mAP", "rank1", "rank5"):
        values = [draw[name] for draw in expected]
        assert trained["galleries"]["values"][name] == pytest.approx(values, abs=1e-6)
        assert trained[name] == pytest.approx(np.mean(values), abs=1e-6)
        assert trained["galleries"]["std"][name] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    protocol, people = metrics["protocol"], len(set(pids.tolist()))
    assert (protocol["gallery_draws"], protocol["n_gallery"], protocol["n_query"]) == (10, people, len(pids) - people)
    assert "Means over 10 galleries of one image per identity" in protocol["description"]
    table = pd.read_parquet(made.ref.folder / "rankings.parquet")
    assert len(table) == 2 * protocol["n_query"], "the rankings are those of the first gallery"
    first = rows["path"].to_numpy()[_drawn(pids, 0)[1]]
    assert set(np.concatenate(table["top_paths"].to_numpy())) == set(first)


def test_the_galleries_of_other_sets_are_their_own_unless_draws_are_asked_for(world):
    plain, drawn = (run(world, **settings) for settings in ({}, {"gallery_draws": 2}))
    metrics = json.loads((plain.ref.folder / "metrics.json").read_text())
    assert metrics["protocol"]["gallery_draws"] == 0
    assert "galleries" not in metrics["results"][0]
    metrics = json.loads((drawn.ref.folder / "metrics.json").read_text())
    assert len(metrics["results"][0]["galleries"]["values"]["mAP"]) == 2


def test_a_method_without_fusion_has_one_mode(world):
    store, images, _, root = world
    model = write_model(store, TrainConfig(device="cpu", scgi=ScgiConfig(cff=False)))
    made = run((store, images, model, root))
    metrics = json.loads((made.ref.folder / "metrics.json").read_text())
    assert [(row["model"], row["mode"]) for row in metrics["results"]] == [("untrained", "image"), ("trained", "image")]


@pytest.mark.parametrize(
    ("settings", "noted"),
    [({}, True), ({"fixed_prompt_ratio": 0.5}, False), ({"cgi": False}, False), ({"cff": False}, False)],
)
def test_fused_scores_of_composed_prompts_only_carry_a_note(world, settings, noted):
    store, images, _, root = world
    run_of = IndexedImages(ref=images, root=root)
    rows = evaluation_rows(run_of, EvaluateConfig())
    model = write_model(store, TrainConfig(device="cpu", scgi=ScgiConfig(**settings)))
    made = protocol(run_of, rows, EvaluateConfig(), model, skipped=0)
    assert mode_notes(made) == ([f"Fused mode: {COMPOSED_ONLY}"] if noted else [])
    assert mode_notes(made, ["image"]) == []
    assert "notes" not in protocol(run_of, rows, EvaluateConfig(), TrainConfig(), skipped=0)


def test_a_camera_embedding_is_given_the_cameras_of_the_images(world):
    store, images, _, root = world
    model = write_model(store, TrainConfig(method="clip_baseline", device="cpu", sie=1.0))
    made = run((store, images, model, root))
    results = json.loads((made.ref.folder / "metrics.json").read_text())["results"]
    assert len(results) == 2
    assert results[0]["mAP"] != results[1]["mAP"]


def test_one_camera_leaves_no_valid_query_and_says_so(tmp_path):
    store = ArtifactStore(tmp_path / "home")
    images = write_world(store, tmp_path / "images", cameras=1)
    with pytest.raises(DataError, match=r"evaluate\.exclude=none"):
        run((store, images, write_model(store), tmp_path / "images"))


def test_an_index_without_queries_is_refused(tmp_path):
    store = ArtifactStore(tmp_path / "home")
    images = write_world(store, tmp_path / "images")
    table = pq.read_table(images.folder / "images.parquet")
    gallery = table.filter(pa.compute.equal(table["split"], "gallery"))

    def produce(folder):
        write_table(folder / "images.parquet", gallery, IMAGES)
        describe_by_hand(folder, name="bare", version="")

    bare = make_artifact(store, "index", {"bare": True}, produce).ref
    with pytest.raises(DataError, match="does not list any usable query image"):
        run((store, bare, write_model(store), tmp_path / "images"))


@pytest.fixture(scope="module")
def people():
    return np.stack([training_sample(SEED + 1, index).image for index in range(24)])


CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def check_company(encode, people, cameras=None):
    """Fail unless `encode` gives an image the same features in any batch, at any position, with any other images."""

    def features(indices, batch_size, flip=False, pixels=people):
        own = None if cameras is None else cameras[torch.tensor(indices)]
        settings = {"mean": MEAN, "std": STD, "device": "cpu", "flip": flip, "cameras": own}
        rows = embed(encode, pixels, np.array(indices), batch_size=batch_size, **settings)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    alone = features(range(12), 1)
    assert np.abs(alone - alone.mean(axis=0)).max() > 0.01  # the images do differ
    for batch_size in (5, 100):
        np.testing.assert_allclose(features(range(12), batch_size), alone, **CLOSE)
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_allclose(features(order, 8), alone[order], **CLOSE)
    # Among other images (black images would change a batch statistic), and among copies of itself.
    strangers = np.concatenate([people[:1], np.zeros_like(people[:3])])
    np.testing.assert_allclose(features(range(4), 4, pixels=strangers)[0], alone[0], **CLOSE)
    np.testing.assert_allclose(features([3] * 4, 4), np.repeat(alone[3:4], 4, axis=0), **CLOSE)
    np.testing.assert_allclose(features(order, 7, flip=True), features(range(12), 4, flip=True)[order], **CLOSE)


METHODS = [("clip_scgi", "image"), ("clip_scgi", "fused"), ("clip_reid", "image"), ("clip_baseline", "image")]


@pytest.mark.parametrize("sie", [0.0, 1.0])
@pytest.mark.parametrize(("method", "mode"), METHODS)
def test_an_embedding_does_not_depend_on_batch_size_order_or_company(method, mode, sie, people):
    """An encoder that mixes the batch axis leaks neighbors, which are often the same person, into an embedding."""
    config = TrainConfig(method=method, device="cpu", seed=1, sie=sie)
    task = build_task(config, identities=4, cameras=[1, 2, 3]).eval()
    numbers = task.camera_numbers([1 + index % 3 for index in range(12)])
    assert (numbers is None) == (sie == 0)
    check_company(task.encoders()[mode], people, numbers)


def test_that_check_finds_an_attention_over_the_batch(people):
    # A plausible bug: batch-first tensors passed to an attention that expects the sequence first.
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(24, 2).eval()

    def encode(images):
        tokens = torch.nn.functional.adaptive_avg_pool2d(images, (4, 2)).flatten(1)[:, None]
        return attention(tokens, tokens, tokens)[0][:, 0]

    with pytest.raises(AssertionError):
        check_company(encode, people)


@pytest.mark.parametrize("rerank", [None, RerankConfig(k1=4, k2=2)])
@pytest.mark.parametrize(("method", "mode"), METHODS)
def test_metrics_do_not_depend_on_batches_or_order(method, mode, rerank, people):
    encode = build_task(TrainConfig(method=method, device="cpu", seed=1), identities=4).eval().encoders()[mode]
    pids, cams = np.arange(24) // 4, np.arange(24) % 4
    query = cams == 0

    def rank(order, batch_size):
        features = embed(encode, people, order, batch_size=batch_size, mean=MEAN, std=STD, device="cpu")
        q, g = query[order], ~query[order]
        p, c = pids[order], cams[order]
        return evaluate_ranking(features[q], features[g], p[q], p[g], c[q], c[g], rerank=rerank)

    expected = rank(np.arange(24), 24)
    got = rank(np.random.default_rng(1).permutation(24), 5)
    assert got.mAP == pytest.approx(expected.mAP, abs=1e-9)
    assert got.mINP == pytest.approx(expected.mINP, abs=1e-9)
    np.testing.assert_allclose(got.cmc, expected.cmc)


def test_flip_averages_with_the_mirror_image_and_streams_to_a_file(tmp_path, people):
    def encode(images):
        return images.flatten(1)[:, :200]

    settings = {"batch_size": 5, "device": "cpu", "mean": MEAN, "std": STD}
    indices = np.array([4, 0, 9])
    plain = embed(encode, people, indices, **settings)
    mirrored = embed(encode, np.ascontiguousarray(people[:, :, ::-1]), indices, **settings)
    seen = []
    both = embed(
        encode,
        people,
        indices,
        flip=True,
        out=tmp_path / "f.npy",
        progress=lambda done, total, _: seen.append((done, total)),
        **settings,
    )
    np.testing.assert_allclose(both, (plain + mirrored) / 2, atol=1e-6)
    assert isinstance(both, np.memmap)
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), both)
    assert seen == [(3, 3)]
    half = embed(encode, people, indices, dtype=torch.bfloat16, **settings)
    assert half.dtype == np.float32


# The query image of a search


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"text", "not an image"),
        (None, "the file does not exist"),
        (b"\xff\xd8\xff\xe0", "the file is truncated or damaged"),
    ],
)
def test_a_query_image_that_cannot_be_used_is_named_before_anything_is_loaded(tmp_path, content, reason):
    path = tmp_path / "query.jpg"
    if content is not None:
        path.write_bytes(content)
    nothing = ArtifactRef(stage="", fingerprint="", content="", path="/nowhere")
    with pytest.raises(
        DataError, match=rf"the query image {path} cannot be used: {reason}.*Give an intact JPEG, PNG, WebP, AVIF"
    ):
        search(run_on(ArtifactStore(tmp_path), nothing, tmp_path), model=nothing, query=path)


def test_a_query_image_with_odd_exif_is_searched_with(world):
    store, images, model, root = world
    path = root / pq.read_table(images.folder / "images.parquet")["path"][0].as_py()
    turned = path.with_name("turned.jpg")
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(turned, exif=TURNED, quality=95)
    plain, odd = (
        search(run_on(store, images, root), model=model, query=query, device="cpu") for query in (path, turned)
    )
    assert [hit.path for hit in odd][:3] == [hit.path for hit in plain][:3]


# The test split, checked before anything is computed


def split_of(tmp_path, rows, reader="manifest"):
    """An index artifact of the rows (split, pid, camid), without any image."""
    blank = {name: [] for name in IMAGES.names}
    for number, (split, pid, camid) in enumerate(rows):
        values = {"path": f"{number}.jpg", "split": split, "pid": pid, "camid": camid, "sha256": f"{number:064d}"}
        for name in IMAGES.names:
            blank[name].append(values.get(name, 1))

    def produce(folder):
        write_table(folder / "images.parquet", pa.table(blank, schema=IMAGES), IMAGES)
        describe_by_hand(folder, reader=reader)

    store = ArtifactStore(tmp_path / "home")
    ref = make_artifact(store, "index", {"rows": [list(row) for row in rows]}, produce).ref
    return IndexedImages(ref=ref, root=tmp_path)


SAME = [("train", 1, 0), ("query", 5, 0), ("query", 6, 0), ("gallery", 5, 0), ("gallery", 6, 0)]


def test_a_split_without_cameras_is_refused_or_not_as_the_setting_says(tmp_path):
    images = split_of(tmp_path, SAME)
    assert check_test_split(images, EvaluateConfig(exclude="none")) == ()
    assert check_test_split(images, EvaluateConfig(gallery_draws=2)) == ()
    with pytest.raises(DataError, match=r"same identity from another camera.*--set evaluate\.exclude=none"):
        check_test_split(images, EvaluateConfig())


@pytest.mark.parametrize(
    ("change", "exclude", "notice"),
    [
        ((4, ("gallery", 6, 1)), "same_camera", "1 of 2 queries do not have a gallery image of their identity from"),
        ((4, ("gallery", 6, 1)), "none", None),
        ((4, ("gallery", 7, 1)), "none", "1 of 2 queries do not have a gallery image of their identity, such as 2.jpg"),
        (
            (3, ("gallery", -1, 1)),
            "none",
            "1 of 2 queries do not have a gallery image of their identity, such as 1.jpg: eval",
        ),
        ((2, ("query", -1, 0)), "none", None),
    ],
)
def test_queries_without_a_match_are_told_as_the_setting_counts_them(tmp_path, change, exclude, notice):
    rows = list(SAME)
    rows[change[0]] = change[1]
    found = check_test_split(split_of(tmp_path, rows), EvaluateConfig(exclude=exclude))
    assert [told.startswith(notice or "") for told in found] == [True] * (notice is not None)


@pytest.mark.parametrize("rows", [SAME[:3], SAME[3:], [*SAME[:3], ("gallery", -1, 1)], [("query", -1, 1), *SAME[3:]]])
def test_a_split_without_queries_or_gallery_is_refused(tmp_path, rows):
    with pytest.raises(DataError, match=r"does not list any usable (query|gallery) image"):
        check_test_split(split_of(tmp_path, rows), EvaluateConfig(exclude="none"))


def test_no_match_at_all_is_not_blamed_on_cameras(tmp_path):
    rows = [*SAME[:3], ("gallery", 8, 1)]
    with pytest.raises(
        DataError, match=r"same identity, so the dataset cannot be evaluated\. Check pid and camid of the dataset$"
    ):
        check_test_split(split_of(tmp_path, rows), EvaluateConfig(exclude="none"))


def test_has_match_is_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(50):
        q, g = rng.integers(1, 6, 2)
        query, gallery = rng.integers(-1, 3, (2, q)), rng.integers(-1, 3, (2, g))
        for exclude in ("same_camera", "none"):
            expected = [
                any(p == r and (exclude == "none" or c != d or d == -1) for r, d in gallery.T.tolist())
                for p, c in query.T.tolist()
            ]
            assert has_match(*query, *gallery, exclude).tolist() == expected


def test_drawn_galleries_keep_all_distractors_and_search_only_for_people():
    pids = np.array([3, 3, 0, 4, 4, 0, 3, 0])
    for seed in range(5):
        split = drawn_split(pids, pids != 0, seed)
        assert pids[split.gallery].tolist().count(0) == 3
        assert sorted(pids[split.gallery].tolist()) == [0, 0, 0, 3, 4]
        assert sorted([*split.query, *split.gallery]) == list(range(8))


def test_an_evaluation_depends_on_test_rows_and_their_paths_and_on_no_training_image(world, tmp_path):
    _, images, model, _ = world
    table = pq.read_table(images.folder / "images.parquet").to_pylist()
    dataset = json.loads((images.folder / "dataset.json").read_text())
    store = ArtifactStore(tmp_path)

    def key(rows, **described):
        def produce(folder):
            write_table(folder / "images.parquet", pa.Table.from_pylist(rows, IMAGES), IMAGES)
            write_json(folder / "dataset.json", dataset | described)

        ref = make_artifact(store, "index", {"rows": rows, "described": described}, produce).ref
        return EvaluateStage(model=model, config=EvaluateConfig()).ingredients(run_on(store, ref))

    trained = table[0] | {"split": "train", "path": "train/1.png", "pid": 99, "sha256": "1" * 64}
    base = key([*table, trained])
    assert key([*table, trained | {"path": "train/2.png", "sha256": "2" * 64}]) == base
    assert key([*table, trained], dataset_hash="0" * 32, notices=["x"], counts={}) == base
    assert key([table[0] | {"path": "a.png"}, *table[1:], trained]) != base
    assert key([table[0] | {"sha256": "3" * 64}, *table[1:], trained]) != base
    assert key([*table, trained], reader="vehicleid") != base


def test_an_evaluation_depends_on_the_model_and_not_on_what_it_was_made_from(world, tmp_path):
    store, images, model, _ = world
    described = json.loads((model.folder / "config.json").read_text())

    def key(**changes):
        def produce(folder):
            (folder / "model.safetensors").write_bytes(changes.get("weights", b"w"))
            write_json(folder / "config.json", described | changes.get("config", {}))

        ref = make_artifact(ArtifactStore(tmp_path), "train", {"changes": repr(changes)}, produce).ref
        return EvaluateStage(model=ref, config=EvaluateConfig()).ingredients(run_on(store, images))["model"]

    base = key()
    assert key(config={"provenance": {"dataset_hash": "x", "images": "y", "python": "z"}}) == base
    assert key(config={"training": {"steps": 4}}) == base
    assert key(config={"config": described["config"] | {"log_every": 99}}) == base
    assert key(config={"config": described["config"] | {"seed": 99}}) != base
    assert key(config={"provenance": {"weights": {"files": {"w": "1"}}}}) != base
    assert key(weights=b"v") != base
