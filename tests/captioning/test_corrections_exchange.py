"""Corrections as tables: what a file may look like, what is refused with row numbers, and the round trip."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioning.corrections import Corrections, Edit, ModelCaption
from captioning.corrections.exchange import ImportPlan, Planned, export_rows, plan_import, save_import
from captioning.corrections.images import DatasetImages
from captioning.corrections.table import COLUMNS, read_rows, write_rows
from data.columns.digests import digests_of
from data.columns.texts import Texts
from data.errors import ClipScgiError, DataError
from data.slots import NONE
from data.stages.images import ImageDigests

PATHS = {"one.jpg": "a" * 64, "two.jpg": "b" * 64, "sub/three.jpg": "c" * 64, "copy_of_one.jpg": "a" * 64}
TEXT = "A young woman is wearing a red coat and blue jeans."
DIGESTS = ImageDigests(Texts(PATHS), digests_of(pa.array([*PATHS.values()])))
IMAGES = DatasetImages(paths=DIGESTS, root="/data/people", captions={"a" * 64: ModelCaption(TEXT, "f" * 32)})
TIME = datetime(2026, 1, 31, 12, 30, 15, 123456, UTC)


@pytest.fixture
def kept(tmp_path) -> Corrections:
    return Corrections.open(tmp_path / "home")


def write(folder: Path, rows: list[dict], name: str = "mine.csv", **options) -> Path:
    file = folder / name
    frame = pd.DataFrame(rows)
    if name.endswith(".parquet"):
        frame.to_parquet(file)
    else:
        frame.to_csv(file, index=False, **options)
    return file


def plan(file: Path, kept: Corrections, **options) -> ImportPlan:
    return plan_import(str(file), read_rows(file), kept, IMAGES, author="tool", **options)


def imported(folder: Path, kept: Corrections, rows: list[dict], **options) -> ImportPlan:
    found = plan(write(folder, rows), kept, **options)
    save_import(found, kept)
    return found


def planned(plan: ImportPlan) -> list[Planned]:
    """Return the rows of a small plan, in the order of the file."""
    return sorted((row for rows in plan.first.values() for row in rows), key=lambda row: row.row.number)


def edit(kept: Corrections, edit: Edit, *, name: str = "one.jpg", **more) -> None:
    now = kept.current([PATHS[name]]).get(PATHS[name])
    more = {"against": IMAGES.captions.get(PATHS[name]), "time": TIME} | more
    kept.save(PATHS[name], edit, author="ada", expected_revision=now.revision if now else 0, **more)


def test_captions_from_elsewhere_by_path_digest_or_attributes(tmp_path, kept):
    rows = [
        {"path": "./one.jpg", "sha256": "", "text": "A man in\nred.", "attr_hair": "", "attr_glasses": ""},
        {"path": "", "sha256": "B" * 64, "text": "A woman in blue.", "attr_hair": "", "attr_glasses": ""},
        {"path": "/data/people/sub/three.jpg", "sha256": "", "text": "", "attr_hair": "bald", "attr_glasses": NONE},
    ]
    found = imported(tmp_path, kept, rows)
    now = kept.current()
    assert [now[letter * 64].text for letter in "abc"] == [
        *("A man in red.", "A woman in blue.", "A person. The person has a bald head.")
    ]
    assert now["c" * 64].slots["glasses"] == NONE
    assert {(entry.author, entry.provenance) for entry in now.values()} == {("tool", "import")}
    assert now["a" * 64].against == IMAGES.captions["a" * 64]
    assert (found.counts["new"], found.unused, found.empty) == (3, 0, 0)


def test_attributes_that_are_not_named_keep_the_models_answer(tmp_path, kept):
    imported(tmp_path, kept, [{"image_path": "one.jpg", "attr_upper_color": "green", "attr_hair": ""}])
    assert kept.current()["a" * 64].text == "A young woman is wearing a green coat and blue jeans."


def test_a_caption_leads_over_attributes_and_empty_rows_are_counted(tmp_path, kept):
    rows = [
        {"path": "one.jpg", "caption": "A man in red.", "attr_gender": "female"},
        {"path": "two.jpg", "caption": "", "attr_gender": ""},
    ]
    found = imported(tmp_path, kept, rows)
    assert (found.unused, found.empty) == (1, 1)
    assert kept.current()["a" * 64].slots["gender"] == "male"
    assert list(kept.current()) == ["a" * 64]


def test_every_bad_row_is_named_and_nothing_is_imported(tmp_path, kept):
    rows = [
        {"path": "one.jpg", "caption": "Fine."},
        {"path": "gone.jpg", "caption": "A man."},
        {"path": "two.jpg", "sha256": "a" * 64, "caption": "A man."},
        {"path": "", "caption": "A man."},
        {"path": "two.jpg", "attr_upper_color": "grey"},
        {"path": "two.jpg", "caption": "A man.", "kind": "poem"},
        {"path": "two.jpg", "kind": "wrong"},
        {"path": "copy_of_one.jpg", "caption": "Another text."},
        {"path": "two.jpg", "caption": "A man.", "time": "yesterday"},
        {"path": "two.jpg", "caption": "A man.", "provenance": "robot"},
        {"path": "two.jpg", "kind": "text", "caption": "A man.", "attr_upper_color": "red"},
        {"path": "two.jpg", "kind": "slots", "caption": "A man.", "attr_upper_color": "red"},
        {"path": "two.jpg", "kind": "wrong", "caption": "A man."},
    ]
    with pytest.raises(DataError) as caught:
        plan(write(tmp_path, rows), kept)
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / 'mine.csv'}, of which nothing was imported: 12 problems")
    for number, words in {
        2: "the dataset has no usable image gone.jpg: remove the row, or add --skip-unknown",
        3: "two.jpg has another image_sha256 in this dataset (bbbbbbbbbbbb...)",
        4: "image_path and image_sha256 are both empty",
        5: "'grey' would be read as 'gray'; write 'gray'",
        6: "invalid kind 'poem': expected text, slots, wrong, or nothing",
        7: "only an existing caption can be marked as wrong",
        8: "another caption of the image of row 1",
        9: "invalid time 'yesterday': expected ISO 8601",
        10: "invalid provenance 'robot': expected human or import",
        11: "kind=text, but attr_upper_color is filled in",
        12: "kind=slots, but the caption is not that of the attributes, 'A person is wearing a red upper garment.'",
        13: "kind=wrong, but there is a caption",
    }.items():
        assert any(f"row {number}: " in line and words in line for line in told.splitlines()), (number, told)
    assert kept.current() == {}


def test_a_file_with_thousands_of_bad_rows_shows_a_hundred(tmp_path, kept):
    rows = [{"path": f"gone{number}.jpg", "caption": "A man."} for number in range(2000)]
    with pytest.raises(DataError, match=r"(?s): 2,000 problems.*and 1,900 more"):
        plan(write(tmp_path, rows), kept)
    assert plan(tmp_path / "mine.csv", kept, skip_unknown=True).unknown == 2000


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "does not contain any rows|lacks a column"),
        ("path,caption\n", "does not contain any rows"),
        ("file,caption\na.jpg,x\n", "lacks a column image_path or image_sha256. Found: 'file', 'caption'"),
        ("path,words\na.jpg,x\n", "lacks a column caption or attr_<slot>"),
        ("path,caption,attr_hat\na.jpg,x,y\n", "unknown column attr_hat: expected attr_gender"),
        ("path,caption,Caption \na.jpg,x,y\n", "more than one column caption"),
        ("path,caption\na.jpg,x,y\n", "row 1 has 3 values, but the first line 2"),
        ('path,caption\na.jpg,"x\n', "cannot be read as a table of captions"),
        ("PK\x03\x04", "spreadsheet or an archive"),
    ],
)
def test_a_file_that_is_no_table_of_captions(tmp_path, text, told):
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=told):
        read_rows(file)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="does not exist or is not a file"):
        read_rows(tmp_path)
    (tmp_path / "latin.csv").write_bytes(b"path,caption\na.jpg,caf\xe9\n")
    with pytest.raises(DataError, match="is not UTF-8 text: line 2 contains the byte 0xe9"):
        read_rows(tmp_path / "latin.csv")
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as a table of captions"):
        read_rows(tmp_path / "bad.parquet")


@pytest.mark.parametrize("options", [{"sep": ";", "encoding": "utf-8-sig"}, {"sep": "\t", "encoding": "utf-16"}, {}])
def test_spreadsheets_write_many_kinds_of_csv(tmp_path, kept, options):
    file = write(tmp_path, [{"Path ": "one.jpg", "CAPTION": "Ein Mann in Grün; rot."}], **options)
    assert planned(plan(file, kept))[0].after.text == "Ein Mann in Grün; rot."


def test_parquet_with_times(tmp_path, kept):
    rows = [{"image_path": "one.jpg", "caption": "A man.", "time": pd.Timestamp("2026-01-31 12:00"), "pid": 3}]
    (found,) = planned(plan(write(tmp_path, rows, "mine.parquet"), kept))
    assert found.after.time == datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_parquet_cells_that_are_not_text_are_refused_and_empty_ones_are_empty(tmp_path, kept):
    def table(**columns) -> Path:
        pq.write_table(pa.table({"image_path": ["one.jpg", "two.jpg"], **columns}), tmp_path / "mine.parquet")
        return tmp_path / "mine.parquet"

    for empty in (float("nan"), None):
        found = plan(table(caption=pa.array([empty, empty], pa.float64())), kept)
        assert (found.empty, planned(found)) == (2, [])
    for value, told in ((["a"], "list"), (b"a", "bytes"), (3, "int"), (3.5, "float"), (True, "bool")):
        with pytest.raises(DataError, match=f"2 problems\n  - row 1: caption is {told} .*\n  - row 2: attr_hair is"):
            plan(table(caption=[value, None], attr_hair=[None, value]), kept)
    assert kept.current() == {}


@pytest.mark.parametrize(
    ("time", "told"),
    [
        ("9999-12-31T23:59:59-23:59", "expected ISO 8601"),
        ("0001-01-01T00:00:00+10:00", "expected ISO 8601"),
        ("0001-01-02T00:00:00", "before 1970"),
        ("9999-12-30T00:00:00", "in the future"),
        (timedelta(days=2), "in the future"),
    ],
)
def test_a_time_that_no_edit_can_have_is_refused(tmp_path, kept, time, told):
    given = time if isinstance(time, str) else (datetime.now(UTC) + time).isoformat()
    file = write(tmp_path, [{"path": "one.jpg", "caption": "A man.", "time": given}])
    with pytest.raises(DataError, match=rf"row 1: invalid time .*{told}"):
        plan(file, kept)
    ahead = (datetime.now(UTC) + timedelta(hours=20)).isoformat()
    assert plan(write(tmp_path, [{"path": "one.jpg", "caption": "A man.", "time": ahead}]), kept).counts["new"]


def corrected(kept: Corrections) -> None:
    """Make a correction of every kind."""
    edit(kept, Edit.of_text("=HYPERLINK('x'), \"quoted\"; ünïcode"))
    edit(kept, Edit.of_slots({"upper_color": "green", "glasses": NONE, "hair": None}), name="two.jpg")
    edit(kept, Edit.wrong(), name="sub/three.jpg", against=ModelCaption("'tis a man.", "e" * 32))


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.parquet"])
def test_the_round_trip_is_the_identity(tmp_path, kept, name):
    corrected(kept)
    file = tmp_path / name
    write_rows(file, list(export_rows(kept.current(), IMAGES)))
    assert [row.outcome for row in planned(plan(file, kept))] == ["unchanged"] * 3
    other = Corrections.open(tmp_path / "other home")
    assert save_import(plan(file, other), other) == 3
    assert other.current() == kept.current()
    write_rows(tmp_path / f"again {name}", list(export_rows(other.current(), IMAGES)))
    assert (tmp_path / f"again {name}").read_bytes() == file.read_bytes()


def test_a_spreadsheet_does_not_run_an_exported_cell(tmp_path, kept):
    corrected(kept)
    write_rows(tmp_path / "out.csv", list(export_rows(kept.current(), IMAGES)))
    text = (tmp_path / "out.csv").read_bytes()
    assert text.startswith(b"\xef\xbb\xbf")
    frame = pd.read_csv(tmp_path / "out.csv", encoding="utf-8-sig", dtype=str, keep_default_na=False)
    assert frame.columns.tolist() == [*COLUMNS]
    assert not frame.map(lambda cell: cell.startswith(("=", "+", "-", "@"))).any().any()
    assert frame["caption"][0].startswith("'=HYPERLINK")


def test_a_reset_image_is_not_exported_and_identical_files_are_one_row(kept):
    corrected(kept)
    edit(kept, Edit.reset(), name="two.jpg")
    assert [row["image_path"] for row in export_rows(kept.current(), IMAGES)] == ["one.jpg", "sub/three.jpg"]


@pytest.mark.parametrize(
    ("time", "options", "outcome"),
    [
        ("", {}, "kept"),
        ((TIME - timedelta(days=1)).isoformat(), {}, "kept"),
        (TIME.isoformat(), {}, "kept"),
        ((TIME + timedelta(days=1)).isoformat(), {}, "changed"),
        ("", {"force": True}, "changed"),
    ],
)
def test_a_newer_edit_of_a_person_is_kept(tmp_path, kept, time, options, outcome):
    edit(kept, Edit.of_text("A person wrote this."))
    rows = [{"path": "one.jpg", "caption": "A tool wrote this.", "time": time}]
    (found,) = planned(imported(tmp_path, kept, rows, **options))
    assert found.outcome == outcome
    expected = "A tool wrote this." if outcome == "changed" else "A person wrote this."
    assert kept.current()["a" * 64].text == expected


def test_a_reset_by_a_person_is_an_edit_too_and_an_import_is_not(tmp_path, kept):
    edit(kept, Edit.of_text("x"), name="two.jpg", provenance="import")
    edit(kept, Edit.of_text("x"))
    edit(kept, Edit.reset())
    rows = [{"path": name, "caption": "A man."} for name in ("one.jpg", "two.jpg")]
    assert [row.outcome for row in planned(imported(tmp_path, kept, rows))] == ["kept", "changed"]


def test_an_edit_between_plan_and_import_stays_in_effect(tmp_path, kept):
    found = plan(write(tmp_path, [{"path": "one.jpg", "caption": "A tool."}]), kept)
    edit(kept, Edit.of_text("A person."))
    with pytest.raises(ClipScgiError, match="1 of 1 captions were edited by others meanwhile"):
        save_import(found, kept)
    assert kept.current()["a" * 64].text == "A person."
    assert [entry.text for entry in kept.history("a" * 64)] == ["A person.", "A tool."]


def test_the_same_row_twice_is_one_change(tmp_path, kept):
    rows = [{"path": name, "caption": "A man."} for name in ("one.jpg", "copy_of_one.jpg", "one.jpg")]
    assert imported(tmp_path, kept, rows).counts == {"new": 1}
    assert len(kept.history("a" * 64)) == 1
