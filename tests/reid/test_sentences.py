"""Text to image as a part of the evaluation: its sentences, its rankings and what it depends on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from data.artifacts.store import ArtifactStore
from data.columns.texts import Texts
from data.datasets import DatasetConfig
from data.errors import DataError
from data.index.stage import index
from data.schemas import TEXT_RANKINGS
from data.stages.stage import RunContext
from reid.config.evaluate import EvaluateConfig
from reid.config.train import TrainConfig
from reid.embedding.embedder import Embedder
from reid.evaluation.sentences.measure import Described, SentenceRanking, ceiling_rank1, sharing_identities
from reid.evaluation.sentences.source import NoSentences, Sentence, Sentences, find_sentences
from reid.evaluation.stage import EvaluateStage
from reid.inputs.captions import weights_identity
from reid.inputs.evaluation_rows import EvaluationRows, RankingSplit, evaluation_rows
from tests.helpers.data_trees import text_search
from tests.helpers.image_rows import image_rows
from tests.helpers.small_models import describe_images, write_captions, write_model, write_world
from tests.helpers.stages import run_on

CONFIG = EvaluateConfig(device="cpu", batch_size=7)
COLORS = ("red", "blue", "green", "black")


@pytest.fixture(scope="module")
def world(module_folder):
    """A run on the toy images (queries every fourth), and a model of CLIP-SCGI."""
    base = module_folder("sentences")
    store = ArtifactStore(base / "home")
    return run_on(store, write_world(store, base / "images"), base / "images"), write_model(store)


def texts_of(run: RunContext) -> dict[str, str]:
    """Return path -> a sentence that some images have in common."""
    paths = run.images.rows("path")["path"].to_pylist()
    return {path: f"A person in a {COLORS[at % 4]} coat." for at, path in enumerate(paths)}


def captioned(run: RunContext, **options):
    return write_captions(run.store, run.images.ref, options.pop("texts", None) or texts_of(run), **options)


def metrics_of(run: RunContext, stage: EvaluateStage) -> dict:
    return json.loads((stage.make(run).ref.folder / "metrics.json").read_text())


# Rankings against a plain computation -------------------------------------------------------------------


def signs(rng: np.random.Generator, count: int, variants: int) -> np.ndarray:
    """Return vectors of ones and minus ones of which few differ: their cosines are exact, and many are equal."""
    return rng.choice([-1.0, 1.0], size=(variants, 16))[rng.integers(variants, size=count)].astype(np.float32)


def rows_of(pids: Sequence[int], queries: int) -> EvaluationRows:
    count = len(pids)
    images = image_rows(["query"] * queries + ["gallery"] * (count - queries), pids, [-1] * count)
    ranked = RankingSplit(slice(0, queries), slice(queries, count), "none")
    return EvaluationRows(images, [ranked], drawn=False, n_junk=0, notices=(), cameras=False)


def brute_force(similarity: np.ndarray, relevant: np.ndarray) -> tuple[float, int, list[int]]:
    """Return average precision, the rank of the first match and the order, equal scores in gallery order."""
    order = sorted(range(len(similarity)), key=lambda at: (-similarity[at], at))
    hits = [rank for rank, at in enumerate(order, start=1) if relevant[at]]
    return float(np.mean([number / rank for number, rank in enumerate(hits, start=1)])), hits[0], order


@pytest.mark.parametrize("source", ["dataset", "captions"])
@pytest.mark.parametrize("seed", range(4))
def test_rankings_are_those_of_a_plain_computation(tmp_path, source, seed):
    rng = np.random.default_rng(seed)
    queries, pids = 12, [*rng.integers(1, 6, size=11), 9, *rng.integers(0, 6, size=40)]  # 0: distractors; 9: alone
    rows = rows_of(pids, queries)
    described = [at for at in range(len(pids) if source == "dataset" else queries) if pids[at] != 0]
    said = [
        Sentence(*rows.images.row(at)[:2], number, f"text {(at + number) % 7}", int(pids[at]))
        for at in described
        for number in range(1 + at % 3)
    ]
    sentences = Sentences.of(source, said)
    texts, joints = signs(rng, len(said), 5), signs(rng, len(pids), 9)
    ranking = SentenceRanking(sentences, rows, top_k=6)
    ranking.add("trained", 3 * texts, joints)
    ranking.write(tmp_path)
    summary, table = ranking.summary(0), pd.read_parquet(tmp_path / "text_rankings.parquet")

    gallery = list(range(len(pids))) if source == "dataset" else list(range(queries, len(pids)))
    expected = []
    for row, text in zip(said, texts, strict=True):
        relevant = np.array([pids[at] == row.pid for at in gallery])
        if relevant.any():
            ap, first, order = brute_force(joints[gallery] @ text, relevant)
            expected.append((row, ap, first, int(relevant.sum()), [rows.images.path[gallery[at]] for at in order[:6]]))
    assert table["image_path"].tolist() == [row.path for row, *_ in expected]
    assert table["number"].tolist() == [row.number for row, *_ in expected]
    assert table["sentence"].tolist() == [row.text for row, *_ in expected]
    np.testing.assert_allclose(table["ap"], [ap for _, ap, *_ in expected])
    assert table["first_hit"].tolist() == [first for _, _, first, *_ in expected]
    assert table["n_relevant"].tolist() == [count for *_, count, _ in expected]
    assert [list(paths) for paths in table["top_paths"]] == [paths for *_, paths in expected]
    first = np.array([row[2] for row in expected])
    (result,) = summary["results"]
    assert [result[f"rank{k}"] for k in (1, 5, 10)] == pytest.approx([(first <= k).mean() for k in (1, 5, 10)])
    assert result["mAP"] == pytest.approx(np.mean([row[1] for row in expected]))
    assert summary["n_sentences"] == len(said)
    assert summary["n_skipped"] == len(said) - len(expected)
    assert (summary["n_skipped"] > 0) == (source == "captions"), "an image always finds itself among all test images"
    assert summary["n_gallery"] == len(gallery)
    assert result["rank1"] <= summary["ceiling_rank1"] <= 1


def test_the_ceiling_of_rank_1_is_what_equal_sentences_leave():
    texts = Texts(["red", "red", "red", "blue", "blue", "green"])
    described = Described(texts, np.array([1, 1, 2, 2, 3, 3]))
    # The first image for "red" shows one person: 2 of 3 right at best. "blue": 1 of 2. "green": 1 of 1.
    assert ceiling_rank1(described) == pytest.approx(4 / 6)
    assert sharing_identities(described).tolist() == [1, 2, 3]
    distinct = Described(Texts(["red", "blue", "red"]), np.array([1, 2, 1]))
    assert ceiling_rank1(distinct) == 1
    assert sharing_identities(distinct).tolist() == []


# The stage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "flip"), [("dataset", False), ("captions", False), ("captions", True)])
def test_the_scores_are_those_of_the_embedder(world, source, flip):
    run, model = world
    rows = [row for row in run.images.rows().to_pylist() if row["pid"] >= 0]
    rows = [row for split in ("query", "gallery") for row in rows if row["split"] == split]
    if source == "dataset":
        own = {row["path"]: [f"A person in {COLORS[row['pid'] % 4]}.", f"Person {row['pid']}."] for row in rows}
        described = describe_images(run.store, run.images.ref, own.items())
        run = replace(run, indexed=replace(run.images, ref=described))
        wanted = [(row["path"], row["pid"], text) for row in rows if row["pid"] for text in own[row["path"]]]
        gallery, captions = rows, captioned(run)
    else:
        captions = captioned(run, status={rows[0]["path"]: "unparsed"})
        gallery = [row for row in rows if row["split"] == "gallery"]
        wanted = [(row["path"], row["pid"], texts_of(run)[row["path"]]) for row in rows[1:] if row["split"] == "query"]
    stage = EvaluateStage(model=model, config=CONFIG.model_copy(update={"flip": flip}), captions=captions)
    found = metrics_of(run, stage)
    summary = found["text_to_image"]
    assert (summary["source"], summary["n_sentences"]) == (source, len(wanted))
    assert found["results"] == metrics_of(run, replace(stage, captions=None))["results"]
    schema = pq.read_schema(stage.make(run).ref.folder / "text_rankings.parquet")
    assert (schema.names, schema.metadata) == (TEXT_RANKINGS.names, TEXT_RANKINGS.metadata)

    config = TrainConfig(device="cpu", seed=3)
    embedders = {"untrained": Embedder.untrained(config, device="cpu"), "trained": Embedder.load(model, device="cpu")}
    assert [result["model"] for result in summary["results"]] == list(embedders)
    for result in summary["results"]:
        embedder = embedders[result["model"]]
        pictures = joint(embedder, [run.images.root / row["path"] for row in gallery], flip=flip)
        said = embedder.embed_texts([text for *_, text in wanted])
        pids = np.array([row["pid"] for row in gallery])
        scored = [
            brute_force(np.round(pictures @ text, 6), pids == pid)
            for (_, pid, _), text in zip(wanted, said, strict=True)
            if (pids == pid).any()
        ]
        assert summary["n_skipped"] == len(wanted) - len(scored)
        assert result["mAP"] == pytest.approx(np.mean([ap for ap, *_ in scored]), abs=1e-6)
        first = np.array([hit for _, hit, _ in scored])
        assert [result[f"rank{k}"] for k in (1, 5, 10)] == pytest.approx([(first <= k).mean() for k in (1, 5, 10)])


def joint(embedder: Embedder, paths: Sequence, *, flip: bool) -> np.ndarray:
    """Return the joint embeddings of images, averaged with those of their mirror images before any norm."""
    import torch
    from PIL import Image

    pixels = torch.stack([torch.from_numpy(np.asarray(Image.open(path))) for path in paths])
    images = (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        features = embedder.task.encode_joint(images)
        features = (features + embedder.task.encode_joint(images.flip(3))) / 2 if flip else features
    return torch.nn.functional.normalize(features, dim=1).numpy()


@pytest.mark.parametrize("method", ["clip_baseline", "clip_reid"])
def test_every_method_and_camera_embeddings_are_measured(world, method):
    run, _ = world
    model = write_model(run.store, TrainConfig(method=method, device="cpu", seed=4, sie=1.0))
    stage = EvaluateStage(model=model, config=CONFIG, captions=captioned(run), untrained=False)
    (result,) = metrics_of(run, stage)["text_to_image"]["results"]
    embedder = Embedder.load(model, device="cpu")
    rows = [row for row in run.images.rows().to_pylist() if row["pid"] >= 0 and row["split"] == "gallery"]
    images = embedder.embed_images(
        [run.images.root / row["path"] for row in rows], mode="joint", cameras=[row["camid"] for row in rows]
    )
    queries = [row for row in run.images.rows().to_pylist() if row["split"] == "query"]
    texts = embedder.embed_texts([texts_of(run)[row["path"]] for row in queries])
    pids = np.array([row["pid"] for row in rows])
    expected = [
        brute_force(np.round(images @ text, 6), pids == row["pid"])[0] for row, text in zip(queries, texts, strict=True)
    ]
    assert result["mAP"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_zero_shot_is_measured_like_the_untrained_model(world):
    run, model = world
    captions = captioned(run)
    zero_shot = EvaluateStage(model=TrainConfig(device="cpu", seed=3), config=CONFIG, captions=captions)
    (result,) = metrics_of(run, zero_shot)["text_to_image"]["results"]
    both = metrics_of(run, EvaluateStage(model=model, config=CONFIG, captions=captions))["text_to_image"]["results"]
    assert result == both[0]


def test_a_model_whose_first_weights_are_known_shares_the_text_features(world):
    run, _ = world
    config = TrainConfig(device="cpu", seed=5)
    known = {"weights": weights_identity(run.store, config.backbone, config.seed)}
    model = write_model(run.store, config, provenance=known)
    other = write_model(run.store, config, provenance={"weights": {**known["weights"], "seed": 99}})
    texts = {path: f"{text} Seen once." for path, text in texts_of(run).items()}
    before = len(run.store.sidecars("text"))
    results = [
        metrics_of(run, EvaluateStage(model=one, config=CONFIG, captions=captioned(run, texts=texts), untrained=False))
        for one in (other, model)
    ]
    assert results[0]["text_to_image"]["results"] == results[1]["text_to_image"]["results"]
    assert len(run.store.sidecars("text")) == before + 1, "the other model reads the tower of its own file"


def test_long_sentences_lose_their_end_and_are_counted(world):
    run, model = world
    texts = texts_of(run)
    texts = {path: f"{text} {'very ' * 90}" if at == 20 else text for at, (path, text) in enumerate(texts.items())}
    assert next(path for path, text in texts.items() if len(text) > 90).startswith("query")
    summary = metrics_of(run, EvaluateStage(model=model, config=CONFIG, captions=captioned(run, texts=texts)))
    assert summary["text_to_image"]["n_truncated"] == 1


# What it depends on -------------------------------------------------------------------------------------


def test_only_the_sentences_that_are_used_change_the_key(world):
    run, model = world

    def key(captions=None, **settings):
        config = CONFIG.model_copy(update=settings)
        return EvaluateStage(model=model, config=config, captions=captions).plan(run)

    plain, texts = key(), texts_of(run)
    assert "sentences" not in plain.ingredients
    assert "text_to_image" not in plain.ingredients["config"]
    captions = captioned(run)
    with_captions = key(captions)
    assert with_captions.ingredients["sentences"]["source"] == "captions"
    same = [key(captions, text_to_image="off"), key(text_to_image="off"), key(text_to_image="captions")]
    assert {plan.fingerprint for plan in same} == {plain.fingerprint}
    assert key(captions, text_to_image="captions").fingerprint == with_captions.fingerprint
    of_gallery = {path: f"{text} Other." if path.startswith("gallery") else text for path, text in texts.items()}
    assert key(captioned(run, texts=of_gallery)).fingerprint == with_captions.fingerprint
    of_queries = {path: f"{text} Other." if path.startswith("query") else text for path, text in texts.items()}
    assert key(captioned(run, texts=of_queries)).fingerprint not in {plain.fingerprint, with_captions.fingerprint}


def test_the_sentences_of_the_dataset_come_first_unless_captions_are_asked_for(world):
    run, _ = world
    paths = run.images.rows("path")["path"].to_pylist()
    described = describe_images(run.store, run.images.ref, [(path, [f"Sentence of {path}."]) for path in paths])
    run = replace(run, indexed=replace(run.images, ref=described))
    captions = captioned(run)

    def source(wanted):
        found = find_sentences(run.images, captions, CONFIG.model_copy(update={"text_to_image": wanted}))
        return found.source if isinstance(found, Sentences) else found.reason

    assert [source(wanted) for wanted in ("auto", "captions", "off")] == [
        "dataset",
        "captions",
        "evaluate.text_to_image=off",
    ]
    # Neither the junk image nor the distractor has a person to find.
    found = find_sentences(run.images, None, CONFIG)
    assert isinstance(found, Sentences)
    assert len(found) == len(paths) - 2


def test_what_cannot_be_measured_has_a_reason(world):
    run, _ = world
    paths = [row["path"] for row in run.images.rows().to_pylist() if row["split"] == "query"]
    none_ok = captioned(run, status=dict.fromkeys(paths, "unparsed"))
    drawn = CONFIG.model_copy(update={"gallery_draws": 2})
    reasons = [
        find_sentences(run.images, None, CONFIG),
        find_sentences(run.images, none_ok, CONFIG),
        find_sentences(run.images, captioned(run), drawn),
    ]
    assert [found.reason for found in reasons if isinstance(found, NoSentences)] == [
        "the dataset does not have sentences of its own, and its queries are not captioned",
        "none of the queries has a caption with status ok",
        "the galleries are drawn, and captions are ranked against the gallery of the dataset",
    ]


def test_captions_of_other_images_are_refused(world, tmp_path):
    run, model = world
    captions = captioned(run, texts={"query/000.png": "One."})
    rows = pq.read_table(captions.folder / "captions.parquet").to_pandas()
    rows["image_path"] = "moved/" + rows["image_path"]
    rows.to_parquet(captions.folder / "captions.parquet")
    with pytest.raises(
        DataError, match=r"captions are of other images: 1 of their queries, such as moved/query/000.png"
    ):
        EvaluateStage(model=model, config=CONFIG, captions=captions).produce(run, tmp_path / "out", tmp_path / "tmp")


def test_the_sentences_of_the_pipeline_do_not_touch_other_ingredients(world):
    run, model = world
    plain = EvaluateStage(model=model, config=CONFIG).ingredients(run)
    told = EvaluateStage(model=model, config=CONFIG, captions=captioned(run, texts={"query/000.png": "One."}))
    assert {name: value for name, value in told.ingredients(run).items() if name != "sentences"} == plain


# A dataset for person search by text, by hand -----------------------------------------------------------


def test_the_hand_worked_scores_of_a_small_cuhk_pedes(tmp_path):
    root, store = text_search(tmp_path / "CUHK-PEDES", "cuhk_pedes"), ArtifactStore(tmp_path / "home")
    made = index(store, config=DatasetConfig(reader="cuhk_pedes", root=str(root)))
    found, rows = find_sentences(made.images, None, CONFIG), evaluation_rows(made.images, CONFIG)
    assert isinstance(found, Sentences)
    assert [path.rpartition("/")[2] for path in rows.images.path] == [
        "1_1.png",
        "0007_c2s3_071052_01.jpg",
        "1_2.png",
        "p1_s2.jpg",
    ]
    joint_of = {"1_1.png": (-1, 0), "0007_c2s3_071052_01.jpg": (0.8, 0.6), "1_2.png": (0, 1), "p1_s2.jpg": (1, 0)}
    text_of = {
        "A woman in a white shirt.": (1, 0),  # p1_s2 first: right
        "White shirt, black skirt.": (0, 1),  # 1_2 first: wrong; 0007 second; 1_1 and p1_s2 tie, and 1_1 comes earlier
        "A white shirt.": (0.8, 0.6),  # 0007 first: right
        "A woman with a black skirt.": (-1, 0),  # 1_1 and 1_2 first: wrong
        "A man with a yellow bag.": (0, 1),  # 1_2 first: right
        "Yellow bag, brown trousers.": (1, 0),  # p1_s2 and 0007 first: wrong; then 1_2 and 1_1
        "A man in brown trousers.": (-1, 0),  # 1_1 first: right
        "He has a yellow bag.": (0, 1),  # 1_2 first: another image of the same man, right
        "A bag.": (0, -1),  # 1_1 and p1_s2 tie, and 1_1 comes earlier: right
    }
    ranking = SentenceRanking(found, rows, top_k=4)
    joints = np.array([joint_of[path.rpartition("/")[2]] for path in rows.images.path], np.float32)
    ranking.add("trained", np.array([text_of[text] for text in ranking.texts], np.float32), joints)
    summary = ranking.summary(0)
    assert (summary["n_sentences"], summary["n_gallery"], summary["n_skipped"]) == (9, 4, 0)
    (result,) = summary["results"]
    assert result["rank1"] == pytest.approx(6 / 9)
    assert result["rank5"] == 1
    ranking.write(tmp_path)
    table = pd.read_parquet(tmp_path / "text_rankings.parquet").set_index("sentence")
    assert table.loc["White shirt, black skirt.", "ap"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert table.loc["A woman with a black skirt.", ["first_hit", "n_relevant"]].tolist() == [3, 2]
    assert table.loc["Yellow bag, brown trousers.", "ap"] == pytest.approx((1 / 3 + 2 / 4) / 2)
