"""The manifest reader: formats, labels, paths, and what it refuses."""

from __future__ import annotations

import datetime
import io
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.datasets import DatasetConfig, scan_dataset
from data.errors import DataError
from data.people import UNKNOWN_CAMERA
from data.readers.manifest import column_of
from tests.helpers.data_trees import put


def scan(root, **options):
    return scan_dataset(DatasetConfig(reader="manifest", root=str(root), **options))


def labels(scanned):
    return {record.path: (record.split, record.pid, record.camid) for record in scanned.records}


def reasons(scanned):
    return {row.path: row.reason for row in scanned.rejected}


def rows_of(*rows):
    return pd.DataFrame(rows, columns=["path", "split", "pid", "camid"])


GOOD = rows_of(
    ("a/1.jpg", "train", 1, 1),
    ("a/2.jpg", "train", 1, 2),
    ("b/3.png", "query", 2, 1),
    ("b/4.png", "gallery", 2, 2),
    ("b/5.png", "gallery", 3, 2),
)


def write(frame, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        frame.to_parquet(file)
    else:
        frame.to_csv(file, index=False, sep="\t" if file.suffix == ".tsv" else ",")
    return file


def expected_of(frame):
    return {row.path: (row.split, int(row.pid), int(row.camid)) for row in frame.itertuples()}


@pytest.mark.parametrize("name", ["manifest.parquet", "manifest.csv", "rows.csv", "rows.tsv", "rows.pq"])
def test_manifest_formats(tmp_path, name):
    put(tmp_path, *GOOD["path"])
    extra = GOOD.assign(note="x, with a comma", weight=0.5)[["note", "camid", "pid", "path", "weight", "split"]]
    file = tmp_path / name
    extra.to_parquet(file) if name.endswith("pq") else write(extra, file)
    found = scan(file)
    assert labels(found) == expected_of(GOOD)
    assert (found.rejected, found.notices, found.root) == ([], [], tmp_path)
    if name.startswith("manifest"):
        assert scan(tmp_path).records == found.records


def test_manifest_elsewhere_with_its_images_under_the_root(tmp_path, monkeypatch):
    put(tmp_path / "images", *GOOD["path"])
    file = write(GOOD, tmp_path / "lists" / "mine.csv")
    monkeypatch.chdir(tmp_path)
    for name in (str(file), "lists/mine.csv", "../lists/mine.csv"):
        assert labels(scan(tmp_path / "images", manifest=name)) == expected_of(GOOD)


def test_manifest_of_windows_editors(tmp_path):
    put(tmp_path, *GOOD["path"])
    text = GOOD.to_csv(index=False, lineterminator="\r\n")
    (tmp_path / "manifest.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert labels(scan(tmp_path)) == expected_of(GOOD)


def test_manifest_paths_that_leave_the_root(tmp_path):
    root = tmp_path / "set"
    put(root, "in.jpg", "folder/deep.jpg")
    put(tmp_path, "out.jpg", "set-2/out.jpg")
    (root / "link.jpg").symlink_to(tmp_path / "out.jpg")
    (root / "linked").symlink_to(tmp_path / "set-2")
    (root / "inner.jpg").symlink_to("in.jpg")
    (root / "inner").symlink_to("folder")
    (root / "circle.jpg").symlink_to("circle.jpg")
    (root / "circle").symlink_to("circle")
    bad = {
        "../out.jpg": "outside_root",
        str(tmp_path / "out.jpg"): "outside_root",
        "folder/../../out.jpg": "outside_root",
        "folder/../in.jpg": "outside_root",
        "link.jpg": "outside_root",
        "linked/out.jpg": "outside_root",
        "../set-2/out.jpg": "outside_root",
        "circle.jpg": "missing",
        "circle/x.jpg": "missing",
        "C:\\set\\in.jpg": "outside_root",
        "\\\\server\\set\\in.jpg": "outside_root",
        "nul\0.jpg": "bad_path",
        "": "bad_path",
        ".": "bad_path",
        "absent.jpg": "missing",
        "in.jpg/x.jpg": "missing",
        "folder": "not_a_file",
        "x" * 5000: "unreadable",
        "/dev/zero": "outside_root",
    }
    good = ["in.jpg", "folder/deep.jpg", "inner.jpg", "inner/deep.jpg"]
    write(rows_of(*((path, "train", 1, 1) for path in [*good, *bad])), root / "manifest.parquet")
    found = scan(root)
    assert sorted(labels(found)) == sorted(good)
    assert reasons(found) == bad


def test_manifest_bad_values_are_rows_with_their_number(tmp_path):
    put(tmp_path, *(f"{n}.jpg" for n in range(12)))
    frame = rows_of(
        ("0.jpg", "train", "0002", "1"),
        ("1.jpg", "train", " 3 ", "1.0"),
        ("2.jpg", "train", "3.", "1.2"),
        ("3.jpg", "train", "1.5", "1"),
        ("4.jpg", "train", None, "1"),
        ("5.jpg", "train", "-2", "1"),
        ("6.jpg", "val", "1", "1"),
        ("7.jpg", None, "1", "1"),
        ("8.jpg", "train", "1", "-1"),
        ("9.jpg", "train", "1", "9" * 30),
        ("10.jpg", "train", "-1", "1"),
        ("11.jpg", " Train", "1", "1"),
        (None, "train", "1", "1"),
    )
    for name in ("manifest.parquet", "other.csv"):
        found = scan(write(frame, tmp_path / name))
        assert labels(found) == {
            name: ("train", *numbers) for name, numbers in {"0.jpg": (2, 1), "1.jpg": (3, 1), "11.jpg": (1, 1)}.items()
        }
        assert found.n_junk == 1
        assert reasons(found) == {
            **dict.fromkeys(["3.jpg", "4.jpg", "5.jpg"], "bad_pid"),
            **dict.fromkeys(["6.jpg", "7.jpg"], "bad_split"),
            **dict.fromkeys(["2.jpg", "8.jpg", "9.jpg"], "bad_camid"),
            "": "bad_path",
        }
        detail = {row.path: row.detail for row in found.rejected}
        assert detail["6.jpg"].startswith("row 7: ")
        assert "train, query, gallery" in detail["6.jpg"]


def test_manifest_float_columns_of_pandas(tmp_path):
    put(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    rows = [("0.jpg", "train", 4.0, 1.0), ("1.jpg", "train", 4.5, 1.0), ("2.jpg", "train", np.nan, 1.0)]
    found = scan(write(rows_of(*rows), tmp_path / "manifest.parquet"))
    assert labels(found) == {"0.jpg": ("train", 4, 1)}
    assert reasons(found) == {"1.jpg": "bad_pid", "2.jpg": "bad_pid"}


def test_manifest_repeated_rows(tmp_path):
    put(tmp_path, *GOOD["path"])
    again = pd.concat([GOOD, GOOD[:1].assign(path="./a//1.jpg"), GOOD[1:2]])
    found = scan(write(again, tmp_path / "manifest.csv"))
    assert labels(found) == expected_of(GOOD)
    assert [row.reason for row in found.rejected] == ["duplicate_row", "duplicate_row"]


@pytest.mark.parametrize("change", [{"pid": 9}, {"camid": 9}, {"split": "query"}])
def test_manifest_one_path_with_two_labels(tmp_path, change):
    put(tmp_path, *GOOD["path"])
    file = write(pd.concat([GOOD, GOOD[:1].assign(**change)]), tmp_path / "manifest.csv")
    with pytest.raises(DataError, match=r"row 6: a/1\.jpg") as error:
        scan(file)
    assert str(file) in str(error.value)


def _parquet_with_other_bytes():
    """Return a Parquet file with a string that is not UTF-8, as tools that do not check it write."""
    stream = io.BytesIO()
    path = pa.array([b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"path": path, "split": ["train"], "pid": [1]}), stream)
    return stream.getvalue()


def test_what_is_refused_names_the_remedy(tmp_path):
    put(tmp_path, *GOOD["path"])
    text = GOOD.to_csv(index=False)
    cases = {
        "lacks.csv": (
            GOOD.drop(columns="pid").to_csv(index=False),
            r"lacks the column\(s\) pid\. .*Found: 'path', 'split'",
        ),
        "near.csv": (
            GOOD.rename(columns={"pid": "Person_ID", "path": "filename"}).to_csv(index=False),
            r"lacks the column\(s\) path, pid; rename 'filename' to path, 'Person_ID' to pid",
        ),
        "pipes.csv": (GOOD.to_csv(index=False, sep="|"), "separated by commas, semicolons or tabs"),
        "nothing.csv": ("", "lacks the column"),
        "bare.csv": ("\0p\0a\0t\0h\n", r"bare\.csv is UTF-16 text without .*; save it as UTF-8"),
        "cut16.csv": (text.encode("utf-16")[:-1], "is not UTF-16 text; save it as UTF-8"),
        "latin.csv": (text.replace("b/5", "café").encode("cp1252"), r"line 6 contains the byte 0xe9; save it as UTF-8"),
        "book.csv": (b"PK\3\4\0\0", "is a spreadsheet or an archive; save it as CSV UTF-8"),
        "twice.csv": ("path,split,pid, PID,camid\n", r"more than one column pid \('pid', ' PID'\); rename or remove"),
        "ragged.csv": (f"{text}\nb/4.png,query\n", "line 8 has 2 values, but the first line 4. Put .* double quotes"),
        "comma.csv": (text.replace("b/5", "b,5"), "line 6 has 5 values.* a comma between double quotes"),
        "open.csv": (f'{text}"a/1.jpg,train,1,1\n', r"line 7: unexpected end of data\. Put values that contain double"),
        "quote.csv": (f'{text}"a"/1.jpg,train,1,1\n', r"line 7: .*between double quotes, and write each"),
        "mixed.csv": (
            text.replace("query,2", "query,bob"),
            r"'bob' in row 3 and '1' in row 1\. Rename the column to label",
        ),
        "both.csv": ("path,split,pid,label\na/1.jpg,train,al,Al\n", "text in both pid and label, .*remove one"),
        "torn.csv": (
            "path,split,pid,label\na/1.jpg,train,1,Al\na/2.jpg,train,1,Bo\n",
            r"more than one label for 1 identity, such as pid 1 \('Al', 'Bo'\)\. Give each pid one label",
        ),
        "long.csv": (
            f"{text}{'x' * 200_000},train,1,1\n",
            r"line 7: field larger .*no value may have more than 131,072",
        ),
        "head.csv": (f"{'x' * 200_000},{text}", "line 1: field larger .*no value may have more than 131,072"),
        "cut32.csv": (text.encode("utf-32")[:-1], "is not UTF-32 text; save it as UTF-8"),
        "text.parquet": ("hello", "cannot be read as a manifest"),
        "empty.parquet": ("", "cannot be read as a manifest"),
        "secret.parquet": (b"PAR1" + b"\0" * 9 + b"\1\0\0\0PARE", "as a manifest: .*Write it again, unencrypted"),
        "bytes.parquet": (_parquet_with_other_bytes(), "has text that is not UTF-8: write it again"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match=message) as error:
            scan(tmp_path / name)
        assert name in str(error.value)


def test_no_manifest_names_the_tables_that_exist(tmp_path):
    for options in ({}, {"manifest": "absent.csv"}):
        with pytest.raises(DataError, match=r"no manifest found.*set data\.manifest to .*clip-scgi manifest"):
            scan(tmp_path, **options)
    write(GOOD, tmp_path / "people.csv")
    with pytest.raises(DataError, match=r"Found there: people\.csv; did you mean data\.manifest=people\.csv\?"):
        scan(tmp_path)


@pytest.mark.parametrize("name", ["pid", "path", "split", "camid"])
def test_columns_of_other_types_are_refused_by_name(tmp_path, name):
    for value in (True, b"1", datetime.date(2020, 1, 1), [1], {"a": 1}):
        frame = GOOD.astype(object).assign(**{name: [value] * len(GOOD)})
        frame.to_parquet(tmp_path / "manifest.parquet")
        with pytest.raises(DataError, match=f"the column {name} has the type .*; write it as text"):
            scan(tmp_path)


def test_manifest_without_rows_is_an_empty_scan(tmp_path):
    found = scan(write(GOOD[:0], tmp_path / "manifest.csv"))
    assert (found.records, found.rejected) == ([], [])


_VALUES = st.one_of(st.none(), st.integers(-3, 5).map(str), st.text(max_size=4), st.sampled_from(["1e3", "٣", "+1"]))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.none(), st.sampled_from(["a.jpg", "b/c.jpg", "../x", "b", "/etc/passwd"]), st.text(max_size=6)
            ),
            st.one_of(st.sampled_from(["train", "query", "gallery", "test"]), st.text(max_size=3)),
            _VALUES,
            _VALUES,
        ),
        max_size=6,
        unique_by=lambda row: row[0],
    )
)
def test_manifest_no_row_is_lost(module_folder, rows):
    root = module_folder("rows")
    put(root, "a.jpg", "b/c.jpg")
    file = root / "manifest.parquet"
    frame = (
        pd.DataFrame(rows, columns=["path", "split", "pid", "camid"], dtype=object)
        .astype("str")
        .where(pd.DataFrame(rows, columns=["path", "split", "pid", "camid"], dtype=object).notna(), None)
    )
    try:
        frame.to_parquet(file)
    except UnicodeEncodeError:  # Parquet cannot store a lone surrogate
        return
    try:
        found = scan(file)
    except DataError:  # text and numbers in the column pid
        return
    assert len(found.records) + len(found.rejected) + found.n_junk == len(rows)
    assert all((root / record.path).resolve().is_relative_to(root) for record in found.records)


# Encodings, separators and headers


def _shouted(text):
    head, _, rows = text.partition("\n")
    return f" {head.upper().replace(',', ' , ')} \n{rows}"


@pytest.mark.parametrize(
    "encoded",
    [
        lambda text: text.encode(),
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: "\ufeff".encode("utf-16-be") + text.encode("utf-16-be"),
        lambda text: text.replace("\n", "\r\n").encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: text.replace(",", ";").replace("\n", "\r\n").encode("utf-8-sig"),
        lambda text: text.replace(",", "\t").encode(),
        lambda text: text.replace(",", "\t").encode("utf-16"),
        lambda text: text.encode("utf-32"),
        lambda text: _shouted(text).encode(),
        lambda text: ('"' + text.replace(",", '","').replace("\n", '"\n"')).removesuffix('"').encode(),
        lambda text: text.replace("\n", "\n\n").removesuffix("\n").encode(),
        lambda text: text.replace("/", "\\").encode(),
        lambda text: text.replace("train", " TRAIN ").replace("query", "Query").encode(),
        lambda text: text.replace(",train", " , train , ").replace(" , ,", " , ").encode(),
    ],
)
def test_what_spreadsheets_write(tmp_path, encoded):
    put(tmp_path, *GOOD["path"])
    (tmp_path / "manifest.csv").write_bytes(encoded(GOOD.to_csv(index=False)))
    found = scan(tmp_path)
    assert labels(found) == expected_of(GOOD)
    assert (found.rejected, found.notices) == ([], [])


def test_values_with_separators_and_quotes(tmp_path):
    odd = ["a, b/1.jpg", 'say "x".jpg', "a;b.jpg", "Chloé.jpg", " blanks .jpg"]
    put(tmp_path, *odd)
    for encoding in ("utf-8", "utf-16"):
        GOOD.assign(path=odd).to_csv(tmp_path / "manifest.csv", index=False, encoding=encoding)
        found = scan(tmp_path)
        assert (sorted(labels(found)), found.rejected) == (sorted(odd), [])


def test_absolute_paths_below_the_root(tmp_path):
    root, link = tmp_path / "set", tmp_path / "link"
    put(root, *GOOD["path"])
    link.symlink_to(root)
    for prefix in (root, link):
        file = write(GOOD.assign(path=[f"{prefix}/{path}" for path in GOOD["path"]]), tmp_path / "list.csv")
        for given_root in (root, link):
            assert labels(scan(given_root, manifest=str(file))) == expected_of(GOOD)


def test_a_path_outside_names_the_remedy(tmp_path):
    put(tmp_path / "set", "a/1.jpg")
    put(tmp_path, "out.jpg")
    write(rows_of((str(tmp_path / "out.jpg"), "train", 1, 1)), tmp_path / "set" / "manifest.csv")
    (row,) = scan(tmp_path / "set").rejected
    assert row.reason == "outside_root"
    assert "set data.root to a folder that contains all images" in row.detail


def test_another_manifest_beside_it_is_told(tmp_path):
    put(tmp_path, *GOOD["path"])
    write(GOOD, tmp_path / "manifest.parquet")
    write(GOOD[:0], tmp_path / "manifest.csv")
    found = scan(tmp_path)
    assert labels(found) == expected_of(GOOD)
    assert found.notices == [
        "manifest.csv is not read, because manifest.parquet exists; delete one of them, or set data.manifest"
    ]
    assert scan(tmp_path, manifest="manifest.csv").records == []


# Parquet


@pytest.mark.parametrize(
    "kind",
    [
        pa.int8(),
        pa.uint64(),
        pa.float32(),
        pa.decimal128(9, 0),
        pa.decimal256(40, 2),
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int8(), pa.int64()),
    ],
)
def test_parquet_types_of_numbers(tmp_path, kind):
    put(tmp_path, *GOOD["path"])
    text = pa.large_string() if "large" in str(kind) else pa.dictionary(pa.int32(), pa.string())
    base = kind.value_type if pa.types.is_dictionary(kind) else kind
    columns = {
        name: pa.array(GOOD[name].astype(str)).cast(text if "large" in str(kind) else pa.string())
        for name in ("path", "split")
    }
    for name in ("pid", "camid"):
        made = [Decimal(n) if pa.types.is_decimal(base) else n for n in GOOD[name].tolist()]
        plain = pa.array(list(map(str, made)) if "string" in str(base) else made, base)
        columns[name] = plain.dictionary_encode() if pa.types.is_dictionary(kind) else plain
    columns["split"] = columns["split"].dictionary_encode()
    pq.write_table(pa.table(columns), tmp_path / "manifest.parquet")
    found = scan(tmp_path)
    assert labels(found) == expected_of(GOOD)
    assert found.rejected == []


def test_decimals_with_a_fraction_are_not_integers(tmp_path):
    put(tmp_path, "a.jpg", "b.jpg")
    table = pa.table({"path": ["a.jpg", "b.jpg"], "split": ["train"] * 2, "pid": [Decimal("1.0"), Decimal("1.5")]})
    pq.write_table(table, tmp_path / "manifest.parquet")
    found = scan(tmp_path)
    assert labels(found) == {"a.jpg": ("train", 1, UNKNOWN_CAMERA)}
    assert reasons(found) == {"b.jpg": "bad_pid"}


def test_parquet_folders(tmp_path):
    put(tmp_path, *GOOD["path"])
    folder = tmp_path / "manifest.parquet"
    GOOD.to_parquet(folder, partition_cols=["split"])
    (folder / "_SUCCESS").touch()
    assert labels(scan(tmp_path)) == expected_of(GOOD)
    GOOD.to_parquet(tmp_path / "by pid", partition_cols=["split", "pid"])
    assert labels(scan(tmp_path, manifest="by pid")) == expected_of(GOOD)
    parts = tmp_path / "parts"
    write(GOOD[:2].astype({"pid": str}), parts / "one.parquet")
    write(GOOD[2:].rename(columns=str.upper), parts / "two.parquet")
    write(GOOD[:0], parts / ".hidden.parquet")
    assert labels(scan(tmp_path, manifest=str(parts))) == expected_of(GOOD)
    write(GOOD[2:3].assign(split="val"), parts / "three.parquet")
    (row,) = scan(tmp_path, manifest="parts").rejected
    assert row.detail.startswith("row 1 of three.parquet: split 'val'")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="does not contain Parquet files"):
        scan(tmp_path, manifest="nothing")


# Labels and cameras


def label_of(scanned):
    return {record.path: (record.pid, record.label) for record in scanned.records}


def test_text_labels_are_numbered_in_sorted_order_whatever_the_order_of_rows(tmp_path):
    put(tmp_path, *GOOD["path"])
    names = GOOD.assign(pid=["bob", "bob", " alice", "alice ", "Zoé"], camid=["north", "south", "north", "south", "10"])
    for file in (write(names, tmp_path / "a.csv"), write(names[::-1], tmp_path / "b.parquet")):
        found = scan(file)
        assert label_of(found) == {
            **{"a/1.jpg": (3, "bob"), "a/2.jpg": (3, "bob"), "b/3.png": (2, "alice"), "b/4.png": (2, "alice")},
            "b/5.png": (1, "Zoé"),
        }
        assert [labels(found)[path][2] for path in GOOD["path"]] == [2, 3, 2, 3, 1]
        assert found.notices == [
            "the column camid has text, such as 'north', and numbers, such as 10: each different value is a"
            " camera of its own"
        ]


def test_junk_and_distractors_beside_text_labels(tmp_path):
    put(tmp_path, *GOOD["path"])
    found = scan(write(GOOD.assign(pid=["al", "al", "bo", "0", "-1"]), tmp_path / "manifest.csv"), keep_junk=True)
    assert label_of(found) == {
        **{"a/1.jpg": (1, "al"), "a/2.jpg": (1, "al"), "b/3.png": (2, "bo"), "b/4.png": (0, ""), "b/5.png": (-1, "")}
    }


def test_rows_without_an_identity_or_a_camera(tmp_path):
    put(tmp_path, *GOOD["path"])
    frame = GOOD.assign(pid=["al", None, "bo", "nan", "cy"], camid=["x", "y", None, "x", ""])
    for name in ("manifest.csv", "manifest.parquet"):
        found = scan(write(frame, tmp_path / name))
        assert reasons(found) == {"a/2.jpg": "bad_pid", "b/4.png": "bad_pid"}
        assert {path: row[2] for path, row in labels(found).items()} == {"a/1.jpg": 1, "b/3.png": -1, "b/5.png": -1}


@pytest.mark.parametrize("camids", [None, ["", "", "", "", ""], [None] * 5, [np.nan] * 5])
def test_no_cameras(tmp_path, camids):
    put(tmp_path, *GOOD["path"])
    frame = GOOD.drop(columns="camid") if camids is None else GOOD.assign(camid=camids)
    for name in ("one.csv", "two.parquet"):
        found = scan(write(frame, tmp_path / name))
        assert {row[2] for row in labels(found).values()} == {UNKNOWN_CAMERA}
        assert found.rejected == []


def test_labels_beside_integers_and_rows_added_by_hand(tmp_path):
    put(tmp_path, *GOOD["path"])
    frame = GOOD.assign(label=["007", "007", "bo", "bo", "al"], pid=["7", "7", "", "", ""])
    assert label_of(scan(write(frame, tmp_path / "manifest.csv"))) == {
        **{
            "a/1.jpg": (7, "007"),
            "a/2.jpg": (7, "007"),
            "b/3.png": (9, "bo"),
            "b/4.png": (9, "bo"),
            "b/5.png": (8, "al"),
        }
    }
    known = frame.assign(label=["al", "al", "bo", "bo", "al"])
    assert label_of(scan(write(known, tmp_path / "manifest.csv")))["b/5.png"] == (7, "al")
    only = frame.drop(columns="pid")
    assert label_of(scan(write(only, tmp_path / "manifest.csv")))["b/3.png"] == (3, "bo")


def test_labels_that_may_be_mistakes_are_told(tmp_path):
    put(tmp_path, *GOOD["path"])
    found = scan(write(GOOD.assign(pid=["Al", "al", "bo", "bo ", "b  o"]), tmp_path / "manifest.csv"))
    assert found.notices == ["1 label(s) look like another one but are different identities, such as 'Al' and 'al'"]
    frame = GOOD.assign(label=["al", "al", "al", "al", ""])
    found = scan(write(frame, tmp_path / "manifest.csv"))
    assert found.notices == ["1 label(s) are used for more than one identity, such as 'al' (pid 1, 2)"]
    found = scan(write(frame.assign(pid=[1, 1, 2, "", 3]), tmp_path / "manifest.csv"))
    assert [row.detail for row in found.rejected] == ["row 4: label 'al' has the pids 1, 2; write one of them"]


@pytest.mark.parametrize("kind", ["csv", "semicolons", "parquet", "folder"])
def test_a_further_column_is_read_by_path(tmp_path, kind):
    put(tmp_path, "a.jpg", "sub/b.jpg", "c.jpg")
    rows = {"Path": ["a.jpg", "./sub/b.jpg", "gone.jpg", "a.jpg"], " Time ": ["x", "", "y", "z"]}
    frame = pd.DataFrame({**rows, "split": "gallery", "pid": 1})
    name = "m.csv"
    if kind in ("csv", "semicolons"):
        frame.to_csv(tmp_path / name, index=False, sep=";" if kind == "semicolons" else ",")
    else:
        name = "m.parquet" if kind == "parquet" else "m.parquet/part.parquet"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        frame.to_parquet(tmp_path / name)
        name = "m.parquet"
    cells = column_of(tmp_path, manifest=name, name="time")
    assert {path: cell.cell for path, cell in cells.items()} == {"a.jpg": "x", "sub/b.jpg": ""}
    assert cells["sub/b.jpg"].place == "row 2"
    assert column_of(tmp_path, manifest=name, name="when") is None
