"""The corrections stage: which captions audit and training read, and on what their fingerprints depend."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioning.attributes import parse_caption
from captioning.config import CaptionConfig
from captioning.corrections import Corrections, Edit, ModelCaption
from captioning.corrections.layer import CorrectedRows, apply_corrections
from captioning.corrections.stage import CorrectStage, find_captions, make_captions
from captioning.stage.probe import uncaptioned
from captioning.stage.stage import caption_part
from data.artifacts.contents import CAPTIONS_FILE, caption_contents, contents_of_captions
from data.artifacts.store import ArtifactRef, ArtifactStore, Produced
from data.columns.source import ParquetRows, TableRows
from data.errors import DataError
from data.files import write_table
from data.schemas import CAPTIONS, CORRECTED, LABEL
from data.slots import SLOTS
from tests.helpers.caption_worlds import draw, index
from tests.helpers.stages import make_artifact, run_on

USE = CaptionConfig(corrections="use")
TEXTS = ("A man is wearing a red shirt.", "A woman is wearing a blue coat.", "A man is wearing a red coat.")
SHAS = tuple(letter * 64 for letter in "abc")
REPLY = {"n_tokens": 9, "n_replies": 1, "batch_size": 2, "conf_gender": -0.5, "model_id": "m", "truncated": True}


def captions_by_hand(store: ArtifactStore, texts=TEXTS, shas=SHAS, *, label: bool = False) -> ArtifactRef:
    rows = [
        dict.fromkeys(CAPTIONS.names)
        | {"image_path": f"{sha[0]}.jpg", "image_sha256": sha, "split": "train", "pid": 1, "camid": 1}
        | {"caption": text, "raw_text": text, "status": "truncated", "template_id": "scgi"}
        | {f"attr_{slot}": value for slot, value in parse_caption(text).items()}
        | REPLY
        for text, sha in zip(texts, shas, strict=True)
    ]
    table = pa.Table.from_pylist(rows, schema=CAPTIONS)
    if label:
        table = table.append_column(LABEL, pa.array([f"person {sha[0]}" for sha in shas]))

    def produce(folder: Path) -> Produced:
        write_table(folder / CAPTIONS_FILE, table, table.schema)
        return Produced(contents=contents_of_captions(table))

    return make_artifact(store, "caption", {"texts": list(texts), "label": label}, produce).ref


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


@pytest.fixture
def captions(store) -> ArtifactRef:
    return captions_by_hand(store)


def run_of(store: ArtifactStore):
    return run_on(store, make_artifact(store, "index", {"by": "hand"}, lambda folder: (folder / "x").touch()).ref)


def apply(store: ArtifactStore, captions: ArtifactRef):
    return CorrectStage(captions=captions, config=USE).make(run_of(store))


def rows_of(ref: ArtifactRef) -> list[dict]:
    return pq.read_table(ref.folder / CAPTIONS_FILE).to_pylist()


def save(store: ArtifactStore, sha256: str, edit: Edit, text: str | None = None, **more) -> None:
    kept = Corrections.open(store.root)
    now = kept.current([sha256]).get(sha256)
    against = ModelCaption(text or TEXTS[SHAS.index(sha256)], "f" * 32)
    kept.save(sha256, edit, author="ada", expected_revision=now.revision if now else 0, **{"against": against, **more})


def test_without_corrections_the_captions_are_the_models(store, captions):
    made = apply(store, captions)
    table = pq.read_table(made.ref.folder / CAPTIONS_FILE)
    assert table.schema.equals(CORRECTED, check_metadata=True)
    model = pq.read_table(captions.folder / CAPTIONS_FILE)
    assert table.select(CAPTIONS.names).equals(model)
    assert table["source"].to_pylist() == ["model"] * 3
    assert table["model_text"].to_pylist() == [*TEXTS]
    assert made.produced.note == "0 captions corrected"
    assert caption_contents(made.ref) == caption_contents(captions)  # so that nothing after it runs again


def test_every_kind_of_correction_is_a_row_with_its_source(store, captions):
    save(store, SHAS[0], Edit.of_text("A man is wearing a pink dress."))
    save(store, SHAS[1], Edit.wrong())
    save(store, SHAS[2], Edit.of_slots({"upper_color": "green"}), provenance="import")
    made = apply(store, captions)
    text, wrong, slots = rows_of(made.ref)
    assert text["caption"] == text["raw_text"] == "A man is wearing a pink dress."
    assert text["attr_upper_type"] == "dress"
    assert [text[name] for name in ("source", "model_text", "corrected_by", "status", "stale")] == [
        *("human", TEXTS[0], "ada", "ok", False)
    ]
    assert {text[name] for name in ("n_tokens", "n_replies", "batch_size", "conf_gender", "first_text")} == {None}
    assert (text["truncated"], text["model_id"], text["image_path"]) == (False, "m", "a.jpg")
    assert (wrong["caption"], wrong["raw_text"], wrong["status"]) == (None, None, "wrong")
    assert wrong["error"] == "marked as wrong by ada"
    assert {wrong[f"attr_{slot}"] for slot in SLOTS} == {None}
    assert wrong["model_text"] == TEXTS[1]
    assert (slots["caption"], slots["source"]) == ("A man is wearing a green coat.", "import")
    assert slots["attr_upper_color"] == "green"
    assert made.produced.note == "3 captions corrected: 1 text, 1 attributes, 1 marked as wrong"
    assert rows_of(captions)[0]["caption"] == TEXTS[0]  # captions.parquet of the caption stage is the model's text


def test_labels_are_kept(store):
    made = apply(store, captions_by_hand(store, label=True))
    assert [row["label"] for row in rows_of(made.ref)] == ["person a", "person b", "person c"]


def test_a_text_without_a_slot_is_unparsed_and_a_reset_gives_the_model_back(store, captions):
    save(store, SHAS[0], Edit.of_text("Something."))
    assert rows_of(apply(store, captions).ref)[0]["status"] == "unparsed"
    save(store, SHAS[0], Edit.reset())
    found = rows_of(apply(store, captions).ref)[0]
    assert (found["caption"], found["source"], found["status"]) == (TEXTS[0], "model", "truncated")


def test_a_correction_survives_another_captioner_and_says_so(store, captions):
    save(store, SHAS[0], Edit.of_text("A man is wearing a pink dress."))
    save(store, SHAS[1], Edit.wrong())
    other = captions_by_hand(store, ("A boy.", "A woman in green.", TEXTS[2]))
    made = apply(store, other)
    text, wrong, _ = rows_of(made.ref)
    assert (text["caption"], text["stale"]) == ("A man is wearing a pink dress.", True)
    # "Wrong" was said of another text, so this one counts.
    assert (wrong["caption"], wrong["source"], wrong["stale"]) == ("A woman in green.", "model", True)
    assert made.produced.note == "1 caption corrected: 1 text; 2 made against another text of the model"


def fingerprint(store: ArtifactStore, captions: ArtifactRef) -> str:
    return CorrectStage(captions=captions, config=USE).plan(run_of(store)).fingerprint


def test_the_fingerprint_depends_on_the_corrections_of_these_images_only(store, captions):
    before = fingerprint(store, captions)
    save(store, "d" * 64, Edit.of_text("Another dataset."), "x")
    kept = Corrections.open(store.root, "port45")
    kept.save(SHAS[0], Edit.of_text("Another template."), author="ada", expected_revision=0)
    assert fingerprint(store, captions) == before
    save(store, SHAS[0], Edit.of_text("A man."))
    assert fingerprint(store, captions) != before
    save(store, SHAS[0], Edit.reset())
    assert fingerprint(store, captions) == before


def test_training_depends_on_texts_alone(store, captions):
    """Who corrected a caption, and how often, does not train a model again."""
    save(store, SHAS[0], Edit.of_text("A man."))
    first = apply(store, captions).ref
    save(store, SHAS[0], Edit.of_text("A woman."))
    assert caption_contents(apply(store, captions).ref)["train"] != caption_contents(first)["train"]
    save(store, SHAS[0], Edit.of_text("A man."), provenance="import")
    again = apply(store, captions).ref
    assert again.fingerprint != first.fingerprint
    assert caption_contents(again)["train"] == caption_contents(first)["train"]


def test_a_correction_during_the_run_does_not_slip_into_a_planned_artifact(store, captions):
    run = run_of(store)
    plan = CorrectStage(captions=captions, config=USE).settled(run).plan(run)
    save(store, SHAS[0], Edit.of_text("Too late."))
    made = plan.make(run)
    assert made.ref.fingerprint == plan.fingerprint
    assert rows_of(made.ref)[0]["caption"] == TEXTS[0]
    late = CorrectStage(captions=captions, config=USE).make(run)
    assert rows_of(late.ref)[0]["caption"] == "Too late."


def test_the_contents_are_known_without_the_artifact(store, captions):
    save(store, SHAS[0], Edit.of_text("A man."))
    stage = CorrectStage(captions=captions, config=USE)
    assert stage.contents(run_of(store)) == caption_contents(stage.make(run_of(store)).ref)


def test_all_captions_wrong_is_an_error(store, captions):
    for sha256 in SHAS:
        save(store, sha256, Edit.wrong())
    with pytest.raises(DataError, match="all captions of the 3 images are missing or marked as wrong"):
        apply(store, captions)


@pytest.fixture
def imported(store, tmp_path):
    """An indexed folder of four images, and the config that reads imported captions only."""
    images = index(store, draw(tmp_path / "images", 4))
    return run_on(store, images, tmp_path / "images"), CaptionConfig(engine="imported", corrections="use")


def test_imported_captions_need_no_model(imported, store):
    run, config = imported
    with pytest.raises(DataError, match="none of the 4 images has an imported caption for template scgi"):
        make_captions(run, config)
    first, *others = run.images.rows("sha256")["sha256"].to_pylist()
    kept = Corrections.open(store.root)
    kept.save(first, Edit.of_text("A man."), author="tool", expected_revision=0, provenance="import")
    made = make_captions(run, config)
    rows = rows_of(made)
    assert [row["status"] for row in rows] == ["ok", "missing", "missing", "missing"]
    assert rows[0]["caption"] == "A man."
    assert {row["error"] for row in rows[1:]} == {"no caption was imported"}
    assert {row["model_id"] for row in rows} == {"imported"}
    assert find_captions(run, config) == made
    assert len(others) == 3


def test_no_worker_and_no_probe_loads_a_model_for_imported_captions(imported):
    run, config = imported
    assert len(uncaptioned(run, config)) == 0
    assert caption_part(run, config).generated == 0


def test_ignored_corrections_leave_the_caption_stage_alone(imported):
    run, config = imported
    assert find_captions(run, config.model_copy(update={"corrections": "ignore"})) is None


def test_corrections_of_batches_are_those_of_the_whole(tmp_path, store):
    captions = captions_by_hand(store, label=True)
    corrections = Corrections.open(store.root)
    corrections.save(SHAS[1], Edit.of_text("A man is wearing a green coat."), author="ann", expected_revision=0)
    found = pq.read_table(captions.folder / CAPTIONS_FILE)
    whole = apply_corrections(found, corrections.current())
    pq.write_table(found, tmp_path / "small.parquet", row_group_size=1)
    rows = CorrectedRows(ParquetRows(tmp_path / "small.parquet"), corrections.current())
    assert pa.concat_tables(rows.batches()).equals(whole)
    assert pa.concat_tables(rows.batches("source"))["source"].to_pylist() == ["model", "human", "model"]
    assert (rows.n_rows, list(rows.names)) == (3, whole.column_names)
    assert contents_of_captions(rows) == contents_of_captions(whole)
    none = CorrectedRows(TableRows(found.slice(0, 0)), corrections.current())
    assert [len(table) for table in none.batches()] == [0]
