"""Captions that are the sentences of the dataset: no model, provenance, and images without a sentence."""

from __future__ import annotations

import json

import pandas as pd
import pyarrow.parquet as pq
import pytest

from captioning.audit.stage import AuditConfig, AuditStage
from captioning.captioner import identify
from captioning.config import CaptionConfig
from captioning.corrections import Corrections, Edit
from captioning.corrections.stage import make_captions
from captioning.stage.probe import uncaptioned
from captioning.stage.stage import CaptionStage, caption_part
from data.artifacts.contents import CAPTIONS_FILE, caption_contents
from data.artifacts.store import ArtifactStore
from data.config import build_config
from data.datasets import DatasetConfig
from data.errors import ConfigError, DataError
from data.index.stage import index
from data.schemas import CAPTIONS
from data.stages.stage import RunContext
from tests.helpers.data_trees import CUHK_PEDES, market, text_search

CONFIG = CaptionConfig(engine="dataset", template="free")


@pytest.fixture(autouse=True)
def _no_model_and_no_waiting(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a captioning model was loaded")

    monkeypatch.setattr("captioning.stage.worker.load_engine", refuse)
    monkeypatch.setattr("captioning.stage.probe.load_engine", refuse)
    monkeypatch.setattr("data.files.os.fsync", lambda handle: None)


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def root(tmp_path):
    return text_search(tmp_path / "set", "cuhk_pedes")


def run_of(store, root, reader="cuhk_pedes"):
    images = index(store, config=DatasetConfig(reader=reader, root=str(root))).images
    return RunContext(store=store, indexed=images)


def rows_of(ref):
    return pq.read_table(ref.folder / CAPTIONS_FILE).to_pylist()


def reworded(root, number, place, sentence):
    rows = json.loads((root / "reid_raw.json").read_text())
    rows[number]["captions"][place] = sentence
    (root / "reid_raw.json").write_text(json.dumps(rows))


def test_the_first_sentence_of_each_image_is_its_caption(store, root):
    made = CaptionStage(config=CONFIG).make(run_of(store, root))
    rows = rows_of(made.ref)
    first = {f"imgs/{row['file_path']}": row["captions"][0] for row in CUHK_PEDES if row["split"] != "val"}
    assert {row["image_path"]: row["caption"] for row in rows} == first
    assert pq.read_schema(made.ref.folder / CAPTIONS_FILE).equals(CAPTIONS, check_metadata=True)
    assert made.produced.note == "8 sentences of the dataset"
    by_path = {row["image_path"]: row for row in rows}
    red = by_path["imgs/CUHK01/0363004.png"]
    assert (red["attr_gender"], red["attr_upper_color"], red["status"]) == ("male", "red", "ok")
    assert (red["raw_text"], red["truncated"], red["n_tokens"], red["dtype"]) == (red["caption"], False, None, None)
    assert {(row["model_id"], row["model_revision"], row["template_id"]) for row in rows} == {("dataset", "", "free")}


def test_another_number_and_images_without_it(store, root):
    config = CaptionConfig(engine="dataset", template="free", sentence=2)
    made = CaptionStage(config=config).make(run_of(store, root))
    rows = {row["image_path"]: row for row in rows_of(made.ref)}
    assert made.produced.note == "1 sentence of the dataset"
    assert rows.pop("imgs/CUHK03/1_1.png")["caption"] == "A bag."
    assert {(row["caption"], row["status"], row["error"]) for row in rows.values()} == {
        (None, "missing", "the image does not have a sentence number 2")
    }
    fingerprints = [identify(one, store.memo).fingerprint for one in (CONFIG, config)]
    assert fingerprints[0] != fingerprints[1]


def test_a_dataset_without_sentences_is_an_error(store, root, tmp_path):
    run = run_of(store, market(tmp_path / "market"), "market1501")
    with pytest.raises(DataError, match=r"caption\.engine=dataset: no image of market1501 has a sentence number 0"):
        CaptionStage(config=CONFIG).make(run)
    beyond = CaptionConfig(engine="dataset", template="free", sentence=9)
    with pytest.raises(DataError, match=r"sentence number 9.*caption\.sentence=0"):
        CaptionStage(config=beyond).make(run_of(store, root))


def test_identical_files_have_sentences_of_their_own(store, root):
    one, other = root / "imgs/CUHK01/0363004.png", root / "imgs/CUHK01/0363005.png"
    other.write_bytes(one.read_bytes())
    rows = {row["image_path"]: row for row in rows_of(CaptionStage(config=CONFIG).make(run_of(store, root)).ref)}
    assert rows["imgs/CUHK01/0363004.png"]["caption"] == "A man in a red coat."
    assert rows["imgs/CUHK01/0363005.png"]["caption"] == "A man in red."


def test_a_changed_sentence_changes_only_what_reads_it(store, root):
    before = CaptionStage(config=CONFIG).make(run_of(store, root)).ref
    reworded(root, 0, 1, "The second sentence is not a caption.")
    assert CaptionStage(config=CONFIG).make(run_of(store, root)).cached
    reworded(root, 5, 0, "A sentence of the test.")
    test = CaptionStage(config=CONFIG).make(run_of(store, root)).ref
    assert caption_contents(test)["train"] == caption_contents(before)["train"]
    reworded(root, 0, 0, "A woman in a blue coat.")
    first = CaptionStage(config=CONFIG).make(run_of(store, root)).ref
    assert caption_contents(first)["train"] != caption_contents(before)["train"]


def test_a_captioning_model_does_not_depend_on_sentences(store, root):
    before = CaptionStage(config=CaptionConfig()).plan(run_of(store, root)).fingerprint
    reworded(root, 0, 0, "A woman in a blue coat.")
    assert CaptionStage(config=CaptionConfig()).plan(run_of(store, root)).fingerprint == before


def test_no_worker_and_no_probe_loads_a_model(store, root):
    run = run_of(store, root)
    assert len(uncaptioned(run, CONFIG)) == 0
    assert caption_part(run, CONFIG).generated == 0


def test_corrections_and_the_audit_read_them_like_other_captions(store, root):
    run = run_of(store, root)
    (sha256,) = [row["sha256"] for row in run.images.rows().to_pylist() if row["path"].endswith("0363004.png")]
    kept = Corrections.open(store.root, "free")
    kept.save(sha256, Edit.of_text("A woman in a red coat."), author="me", expected_revision=0)
    captions = make_captions(run, CONFIG.model_copy(update={"corrections": "use"}))
    assert [row["caption"] for row in rows_of(captions) if row["image_sha256"] == sha256] == ["A woman in a red coat."]
    audit = AuditStage(captions=captions, config=AuditConfig(min_words=2)).make(run)
    flags = pd.read_parquet(audit.ref.folder / "flags.parquet")
    assert (len(flags), flags["off_template"].sum()) == (8, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "dataset"}, r"template: the sentences of a dataset do not follow scgi; set template=free"),
        ({"sentence": 1}, "sentence: has no effect with engine transformers, only with dataset; remove it"),
        ({"engine": "dataset", "template": "free", "sentence": -1}, "sentence"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_config(CaptionConfig, changes, "caption")


def test_the_setting_is_part_of_the_identity_only_if_it_is_set():
    assert "sentence" not in CaptionConfig().identity()
    assert CaptionConfig(engine="dataset", template="free", sentence=1).identity()["sentence"] == 1
