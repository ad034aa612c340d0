"""Why a stage runs: predecessors in a store of several recipes, and the words for what changed."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from data.artifacts.contents import SENTENCES_FILE, contents_of_captions, contents_of_images, image_contents
from data.artifacts.store import SIDECAR, ArtifactStore, fingerprint_of
from data.columns.source import TableRows
from data.errors import counted
from data.files import read_json, write_json, write_table
from data.schemas import CAPTIONS, IMAGES, SENTENCES
from data.stages.stage import RunContext
from flows.reasons.images import image_changes
from flows.reasons.reason import FIRST, Purpose, index_reason, leaves, reason
from flows.reasons.rows import Table
from flows.reasons.tables import IMAGES as IMAGE_TABLES
from flows.reasons.tables import between
from flows.reasons.texts import sentence_changes, text_changes, whole_images
from reid.config.train import ScheduleConfig, TrainConfig
from tests.helpers.stages import HandMade, make_artifact

DEMO = Purpose(dataset="people", recipe="demo")
OTHER = Purpose(dataset="people", recipe="other")
TRAINING = {
    "images": "a" * 64,
    "captions": None,
    "config": {"method": "clip_scgi", "schedule": {"epochs": 36, "milestones": [25, 32]}, "seed": 0},
    "weights": {"files": {"model.safetensors": "b" * 64}, "seed": None},
    "version": 2,
}


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path)


def changed(base, path, value):
    *keys, last = path.split(".")
    copy = {key: dict(item) if isinstance(item, dict) else item for key, item in base.items()}
    here = copy
    for key in keys:
        here[key] = dict(here[key])
        here = here[key]
    here[last] = value
    return copy


def why(store, stage, ingredients, purpose):
    planned = HandMade(name=stage, made_of=ingredients, work=lambda folder: None).plan(RunContext(store=store))
    return reason(store, planned, purpose)


def make(store, ingredients, purpose=DEMO, stage="train", used=None):
    ref = make_artifact(store, stage, ingredients, lambda folder: write_json(folder / "x.json", ingredients)).ref
    if purpose:
        store.record_use(ref, dataset=purpose.dataset, recipe=purpose.recipe)
    if used:
        os.utime(ref.folder, (used, used))
    return ref


def test_the_first_run_of_a_dataset_and_recipe_says_so(store):
    assert why(store, "train", TRAINING, DEMO) == FIRST
    make(store, TRAINING)
    assert why(store, "train", changed(TRAINING, "config.seed", 1), OTHER) == FIRST
    assert why(store, "train", changed(TRAINING, "config.seed", 1), Purpose(dataset="x", recipe="demo")) == FIRST


def test_a_setting_that_ingredients_leave_out_has_its_default(store):
    old = TRAINING | {"recipe": {"caption": {"engine": "transformers"}, "data": {}}}
    make(store, old, stage="report")
    for path, value, expected in (
        ("recipe.caption.corrections", "use", "recipe.caption.corrections ignore -> use"),
        ("recipe.data.split", "by_identity", "recipe.data.split auto -> by_identity"),
        ("recipe.name", "mine", "recipe.name unset -> mine"),
    ):
        assert why(store, "report", changed(old, path, value), DEMO) == expected


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("config.schedule.epochs", 20, "config.schedule.epochs 36 -> 20"),
        ("config.schedule.milestones", [3], "config.schedule.milestones [25, 32] -> [3]"),
        ("config.method", "clip_reid", "config.method clip_scgi -> clip_reid"),
        ("config.sie", 1.0, "config.sie 0.0 -> 1.0"),
        ("config.evaluation_rule", "new", "config.evaluation_rule unset -> new"),
        ("config.method", "x" * 50, "config.method changed"),
        ("images", "c" * 64, "images changed"),
        ("captions", "c" * 64, "captions changed"),
        ("weights.files", {"model.safetensors": "c" * 64}, "weights changed: model.safetensors"),
        ("weights.seed", 3, "weights changed: seed null -> 3"),
        ("version", 3, "code version 2 -> 3"),
    ],
)
def test_one_changed_ingredient_is_named(store, path, value, expected):
    make(store, TRAINING)
    assert why(store, "train", changed(TRAINING, path, value), DEMO) == expected


def test_a_renamed_setting_is_named_by_its_current_key(store):
    settings = TrainConfig().identity()
    make(store, TRAINING | {"config": settings})
    faster = TrainConfig(schedule=ScheduleConfig(lr_clip=1e-3)).identity()
    assert "rate_clip" in faster["schedule"], "fingerprints keep the old key"
    told = why(store, "train", TRAINING | {"config": faster}, DEMO)
    assert told == f"config.schedule.lr_clip {settings['schedule']['rate_clip']} -> 0.001"
    page = {"recipe": {"name": "demo", "train": settings}, "version": 1}
    make(store, page, stage="report")
    told = why(store, "report", page | {"recipe": {"name": "demo", "train": faster}}, DEMO)
    assert told.startswith("recipe.train.schedule.lr_clip ")


def test_a_captioner_is_told_by_its_setting(store):
    captions = {"images": {"images.parquet": "1" * 64}, "captioner": {"dtype": "float32", "template": "2" * 64}}
    make(store, captions, stage="caption")
    other = changed(captions, "captioner.dtype", "bfloat16")
    assert why(store, "caption", other, DEMO) == "captioner changed: dtype float32 -> bfloat16"
    other = changed(captions, "captioner.template", "3" * 64)
    assert why(store, "caption", other, DEMO) == "captioner changed: template"


def test_many_changes_are_counted_and_another_version_hides_them(store):
    make(store, TRAINING)
    many = TRAINING | {"config": {"a": 1, "b": 2, "schedule": {"epochs": 1, "milestones": [25, 32]}}}
    assert why(store, "train", many, DEMO) == (
        "config.a unset -> 1; config.b unset -> 2; config.schedule.epochs 36 -> 1; and 2 more"
    )
    assert why(store, "train", many | {"version": 3}, DEMO) == "code version 2 -> 3"


def test_the_predecessor_is_the_nearest_of_the_same_recipe(store):
    far = changed(changed(TRAINING, "config.seed", 5), "config.method", "clip_reid")
    make(store, TRAINING, used=1_000)
    make(store, far, used=2_000)
    make(store, changed(TRAINING, "config.schedule.epochs", 20), OTHER, used=3_000)
    wanted = changed(TRAINING, "config.schedule.epochs", 21)
    assert why(store, "train", wanted, DEMO) == "config.schedule.epochs 36 -> 21", "shares more than the newer one"
    assert why(store, "train", wanted, OTHER) == "config.schedule.epochs 20 -> 21"
    make(store, changed(TRAINING, "config.schedule.epochs", 30), used=4_000)
    assert why(store, "train", wanted, DEMO) == "config.schedule.epochs 30 -> 21", "of equals the newest"


def test_an_artifact_found_by_two_recipes_is_a_predecessor_of_both(store):
    make(store, TRAINING)
    ref = make(store, TRAINING, OTHER)
    assert read_json(ref.folder / "labels.json") == [
        {"dataset": "people", "recipe": "demo"},
        {"dataset": "people", "recipe": "other"},
    ]
    for purpose in (DEMO, OTHER):
        assert why(store, "train", changed(TRAINING, "config.seed", 1), purpose) == "config.seed 0 -> 1"
    assert store.find("train", ref.fingerprint) == ref, "a label does not damage an artifact"
    make(store, TRAINING)
    assert read_json(ref.folder / "labels.json")[-1] == {"dataset": "people", "recipe": "demo"}, "the last use is last"


def test_artifacts_without_a_label_count_where_there_is_no_other(store):
    make(store, TRAINING, purpose=None)
    assert why(store, "train", changed(TRAINING, "version", 3), DEMO) == "code version 2 -> 3"
    make(store, changed(TRAINING, "config.seed", 1))
    assert why(store, "train", changed(TRAINING, "config.seed", 2), DEMO) == "config.seed 1 -> 2"


def test_damaged_incomplete_deleted_and_interrupted_artifacts_are_told_apart(store):
    ref = make(store, TRAINING)
    (ref.folder / "x.json").write_text("[]")
    assert why(store, "train", TRAINING, DEMO).startswith("its artifact is damaged: x.json has 2 bytes")
    sidecar = read_json(ref.folder / SIDECAR)
    write_json(ref.folder / SIDECAR, sidecar | {"fingerprint": None})
    assert why(store, "train", TRAINING, DEMO) == "some images failed last time"
    (ref.folder / SIDECAR).write_text("{")
    assert why(store, "train", TRAINING, DEMO) == f"its artifact is damaged: {SIDECAR} is damaged"
    ref.folder.rename(store.root / "gone")
    assert why(store, "train", TRAINING, DEMO).startswith("its artifact was deleted")
    store.scratch("train", ref.fingerprint).mkdir(parents=True)
    assert why(store, "train", TRAINING, DEMO) == f"continues an interrupted run ({FIRST})"


def test_damaged_labels_and_sidecars_of_others_stop_nothing(store):
    ref = make(store, TRAINING)
    for text in ("[", "{}", "[1]", '[{"dataset": 1}]', "null"):
        (ref.folder / "labels.json").write_text(text)
        assert why(store, "train", changed(TRAINING, "config.seed", 1), DEMO) == "config.seed 0 -> 1", text
    (ref.folder / SIDECAR).write_text("[]")
    assert why(store, "train", changed(TRAINING, "config.seed", 1), DEMO) == FIRST


def image(path, sha256, split="train", pid=1, camid=1):
    return {"path": path, "sha256": sha256 * 64, "split": split, "pid": pid, "camid": camid}


def table(rows, **options):
    return Table(source=TableRows(pa.Table.from_pylist(rows)), **options)


OLD = [image("a", "1"), image("b", "2"), image("c", "3"), image("d", "4"), image("e", "5")]


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (OLD, []),
        ([*OLD[1:], image("z", "1")], ["1 path renamed"]),
        ([*OLD[2:], image("y", "1"), image("z", "2")], ["2 paths renamed"]),
        ([*OLD, image("f", "6"), image("g", "7")], ["2 images added"]),
        ([*OLD, image("f", "1")], ["1 image added"]),
        (OLD[1:], ["1 image removed"]),
        ([image("a", "9"), *OLD[1:]], ["1 image replaced"]),
        ([image("a", "1", pid=2), *OLD[1:]], ["1 image relabeled"]),
        ([image("z", "1", pid=2), *OLD[1:]], ["1 image relabeled"]),
        (
            [image("z", "1"), image("b", "9"), *OLD[3:], image("f", "6")],
            ["1 image added", "1 image removed", "1 image replaced", "1 path renamed"],
        ),
    ],
)
def test_images_are_matched_by_path_and_then_by_bytes(new, expected):
    assert image_changes(table(OLD), table(new)) == expected


def test_a_stage_that_does_not_read_paths_hears_of_no_renaming():
    new = [image("z", "1"), *OLD[1:], image("f", "6")]
    assert image_changes(table(OLD, with_paths=False), table(new, with_paths=False)) == ["1 image added"]


def text(sha256, caption):
    return {"image_sha256": sha256 * 64, "pid": 1, "camid": 1, "split": "train", "caption": caption}


def test_captions_are_compared_by_their_texts():
    old = table([text("1", "A man."), text("2", "A man."), text("3", None)])
    new = table([text("1", "A man. "), text("2", "A woman."), text("4", "A man.")])
    assert text_changes(old, new) == ["1 with another text", "1 added", "1 removed"]


def index(store, rows, number, **described):
    table = pa.Table.from_pylist([{"size": 1, "width": 1, "height": 1} | row for row in rows], IMAGES)
    description = {"name": "people", "reader": "manifest", "version": "", "dataset_hash": f"{number:032d}"} | described
    ingredients = {"stage_version": 2, "schema_version": 2, "rejected": "0" * 64, "description": description}
    return make_artifact(
        store,
        "index",
        ingredients,
        lambda folder: write_table(folder / "images.parquet", table, IMAGES),
        contents=lambda _: contents_of_images(table),
    ).ref


def test_behind_a_digest_of_images_the_tables_are_compared(store):
    rows = [image("t1", "1"), image("t2", "2"), image("q", "3", "query", 5), image("g", "4", "gallery", 5, 2)]
    old = index(store, rows, 1)
    new = index(store, [image("t9", "1"), rows[1], image("t3", "9"), rows[2], image("h", "4", "gallery", 5, 2)], 2)
    parts, other = image_contents(old), image_contents(new)
    make(store, TRAINING | {"images": parts["train"]})
    wanted = TRAINING | {"images": other["train"]}
    assert why(store, "train", wanted, DEMO) == "images changed: 1 image added", "a renamed file does not count"
    make(store, {"images": parts["ranked"]}, stage="evaluate")
    assert why(store, "evaluate", {"images": other["ranked"]}, DEMO) == "images changed: 1 path renamed"
    make(store, {"images": old.digests_of("images.parquet")}, stage="caption")
    assert why(store, "caption", {"images": new.digests_of("images.parquet")}, DEMO) == (
        "images changed: 1 image added, 2 paths renamed"
    )
    (old.folder / "images.parquet").write_bytes(b"x")
    assert why(store, "train", wanted, DEMO) == "images changed"


def test_behind_a_digest_of_captions_texts_are_compared(store):
    refs = []
    for word in ("man", "woman"):
        rows = [
            dict.fromkeys(CAPTIONS.names) | text("1", f"A {word}.") | {"camid": 1},
            dict.fromkeys(CAPTIONS.names) | text("2", "A person."),
        ]
        table = pa.Table.from_pylist(rows, CAPTIONS)
        refs.append(
            make_artifact(
                store,
                "caption",
                {"word": word},
                lambda folder, table=table: write_table(folder / "captions.parquet", table, CAPTIONS),
                contents=lambda _, table=table: contents_of_captions(table),
            ).ref.contents()["train"]
        )
    make(store, TRAINING | {"captions": refs[0]})
    assert why(store, "train", TRAINING | {"captions": refs[1]}, DEMO) == "captions changed: 1 with another text"


def test_an_index_says_what_changed_in_the_folder(store):
    old = index(store, OLD, 1)
    assert index_reason(store, old, set(), DEMO) == FIRST
    store.record_use(old, dataset="people", recipe="demo")
    assert index_reason(store, old, {old.fingerprint}, DEMO) == "its artifact was damaged or deleted"
    new = index(store, [image("z", "1"), *OLD[1:]], 2)
    assert index_reason(store, new, {old.fingerprint}, DEMO) == "images changed: 1 path renamed"
    unlike = [image(f"elsewhere/{row['path']}", digit) for row, digit in zip(OLD, "6789a", strict=True)]
    elsewhere = index(store, unlike, 4)
    assert index_reason(store, elsewhere, {old.fingerprint}, DEMO) == (
        "images changed: another dataset, without a common image"
    )
    other = index(store, OLD, 3, reader="market1501")
    assert index_reason(store, other, {old.fingerprint}, DEMO) == (
        "images changed; dataset changed: reader manifest -> market1501"
    )
    noted = index(store, OLD, 1, notices=["something"])
    assert index_reason(store, noted, {old.fingerprint}, DEMO) == "the notices about the dataset changed"


def test_leaves_are_the_values_of_nested_objects():
    assert leaves({"a": {"b": 1, "c": [1]}, "d": None}) == {("a", "b"): 1, ("a", "c"): [1], ("d",): None}


def test_an_artifact_that_another_process_is_making_was_not_deleted(tmp_path):
    store, ingredients = ArtifactStore(tmp_path), {"config": {"seed": 0}}
    purpose = Purpose(dataset="people", recipe="demo")
    with store.lock("train", fingerprint_of("train", ingredients)):
        assert why(store, "train", ingredients, purpose) == "another process was making it"
    assert why(store, "train", ingredients, purpose) == (
        "its artifact was deleted, or the run that made it was interrupted"
    )


def test_sentences_of_an_image_are_compared_as_one_text(tmp_path):
    said = [("a", ["one", "two", "three"]), ("b", ["four"]), ("c", ["five", "six"])]
    changed = [("a", ["one", "two", "three"]), ("b", ["four", "more"]), ("c", ["six", "five"]), ("d", ["x"])]
    for name, images in (("old", said), ("new", changed), ("same", said)):
        rows = [
            {"image_path": path, "number": at, "sentence": text}
            for path, texts in images
            for at, text in enumerate(texts)
        ]
        write_table(tmp_path / name / SENTENCES_FILE, pa.Table.from_pylist(rows, SENTENCES), SENTENCES)
    assert sentence_changes(tmp_path / "old", tmp_path / "new") == ["those of 2 images"]
    assert sentence_changes(tmp_path / "old", tmp_path / "same") == []
    assert sentence_changes(tmp_path / "old", tmp_path / "none") == ["those of 3 images"]


def test_rows_of_an_image_in_two_batches_are_read_together():
    rows = pa.table({"image_path": [*"aaabcc"], "sentence": [*"123456"]})
    batches = [rows.slice(0, 2), rows.slice(2, 0), rows.slice(2, 3), rows.slice(5)]
    found = [part["image_path"].to_pylist() for part in whole_images(batches)]
    assert [images for images in found if images] == [[*"aaab"], [*"cc"]]


def test_a_file_that_breaks_off_gives_no_details(store):
    """Its footer can be read, and its rows cannot."""
    folders = [index(store, OLD, 1).folder, index(store, OLD[1:], 2).folder]
    assert between(IMAGE_TABLES, *folders) == ["1 image removed"]
    file = folders[0] / "images.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:4] + bytes(100) + content[104:])
    assert between(IMAGE_TABLES, *folders) == []


@pytest.mark.parametrize("seed", range(3))
def test_changes_of_many_images_are_those_of_plain_python(seed):
    rng = np.random.default_rng(seed)
    old = [image(f"p{at}", f"{rng.integers(6)}") for at in range(40)]
    new = [
        image(f"p{at + rng.integers(2) * 100}", f"{rng.integers(6)}", pid=int(rng.integers(1, 3)))
        for at in rng.choice(50, 30, replace=False).tolist()
    ]
    assert image_changes(table(old), table(new)) == plain_changes(old, new)


def plain_changes(old, new):
    before, after = ({row["path"]: row for row in rows} for rows in (old, new))
    pairs = [("", before[path], row) for path, row in after.items() if path in before]
    gone = [row for row in old if row["path"] not in after]
    added = 0
    for row in new:
        if row["path"] not in before:
            twin = next((other for other in gone if other["sha256"] == row["sha256"]), None)
            added += twin is None
            if twin is not None:
                gone.remove(twin)
                pairs.append(("renamed", twin, row))
    counts = Counter(added=added, removed=len(gone))
    for same, one, other in pairs:
        labels = [{name: row[name] for name in ("split", "pid", "camid")} for row in (one, other)]
        is_replaced = one["sha256"] != other["sha256"]
        counts["replaced" if is_replaced else "relabeled" if labels[0] != labels[1] else same] += 1
    nouns = {"added": "image", "removed": "image", "replaced": "image", "relabeled": "image", "renamed": "path"}
    return [f"{counted(counts[kind], noun)} {kind}" for kind, noun in nouns.items() if counts[kind]]
