"""Columns without a Python object per row: digests, JSON digests, shuffles and content digests equal plain Python."""

from __future__ import annotations

import hashlib
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.artifacts.contents import audited_columns, caption_text, contents_of_captions
from data.columns.codes import pair_codes
from data.columns.digests import digests_of, first_bytes, first_equal, heads, joined, positions, texts_of
from data.columns.distinct import each_distinct
from data.columns.growing import GrowingTexts
from data.columns.json_rows import RowDigest
from data.columns.shuffle import Shuffle
from data.columns.source import ParquetRows, TableRows, in_blocks
from data.errors import DataError
from data.schemas import CAPTIONS, LABEL

SHAS = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(300)] + ["0" * 64, "f" * 64, "7f" * 32, "80" * 32]


def test_digests_are_sorted_found_and_written_as_their_texts():
    column = pa.chunked_array([SHAS[:7], [], SHAS[7:]], pa.string())
    digests = digests_of(column)
    assert texts_of(digests).to_pylist() == SHAS == texts_of(digests_of(pa.array(SHAS).slice(0))).to_pylist()
    assert texts_of(np.sort(digests)).to_pylist() == sorted(SHAS)
    assert first_bytes(digests).tolist() == [int(text[:2], 16) for text in SHAS]
    known = np.sort(digests[::2])
    found = positions(known, digests)
    assert [at >= 0 for at in found.tolist()] == [n % 2 == 0 for n in range(len(SHAS))]
    assert (known[found[::2]] == digests[::2]).all()
    assert positions(known[:0], digests).tolist() == [-1] * len(SHAS)
    assert digests_of(pa.array(SHAS).slice(5, 3)).tolist() == digests[5:8].tolist()


def test_more_digests_than_a_text_column_can_hold_are_refused():
    many = np.broadcast_to(digests_of(pa.array(SHAS[:1])), 1 << 25)
    with pytest.raises(ValueError, match="33,554,432 digests do not fit into one text column: take at most 33,554,431"):
        texts_of(many)


def test_texts_that_arrive_in_batches_are_one_column():
    whole = pa.array(["a", "", "\u00e9\U0001f600", "b" * 5])
    growing = GrowingTexts()
    for batch in (whole.slice(1, 2), pa.array([], pa.string()), whole.slice(3), pa.array([""]), whole.slice(0, 1)):
        growing.extend(batch)
    assert (len(growing), growing.build().to_pylist()) == (5, ["", "\u00e9\U0001f600", "b" * 5, "", "a"])
    assert GrowingTexts().build().to_pylist() == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40))
def test_pairs_have_codes_in_the_order_in_which_they_are_seen(pairs):
    left, right = np.array(pairs, dtype=np.int32).reshape(-1, 2).T
    codes, firsts = pair_codes(left, right)
    distinct = list(dict.fromkeys(pairs))
    assert codes.tolist() == [distinct.index(pair) for pair in pairs]
    assert firsts == [pairs.index(pair) for pair in distinct]


@pytest.mark.parametrize("varied", [0, 31])
def test_equal_digests_are_found_even_if_others_begin_alike(varied):
    raw = np.zeros((300, 32), dtype=np.uint8)
    raw[:, varied] = np.random.default_rng(0).integers(9, size=len(raw))
    column = np.zeros(len(raw), dtype=[("flag", "?"), ("sha256", "S32")])
    column["sha256"] = raw.reshape(-1).view("S32")
    firsts = [raw[:, varied].tolist().index(byte) for byte in raw[:, varied]]
    assert first_equal(column["sha256"]).tolist() == firsts
    assert first_equal(column["sha256"][:0]).tolist() == []


def test_heads_are_ordered_as_the_bytes_are():
    digests = digests_of(pa.array(SHAS))
    cameras = np.arange(len(SHAS), dtype=np.int64)
    for keys in (digests, joined(digests, cameras)):
        assert heads(keys).tolist() == [int(text[:16], 16) for text in SHAS]


@pytest.mark.parametrize("wrong", ["", "a" * 63, "A" * 64, "g" * 64, None])
def test_a_value_that_is_not_a_digest_is_refused(wrong):
    with pytest.raises(ValueError, match="not a sha256"):
        digests_of(pa.array([SHAS[0], wrong], pa.string()))


ROWS = st.lists(
    st.tuples(
        st.none() | st.text(max_size=9),
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.booleans(),
        st.none() | st.floats(width=32),
    ),
    max_size=40,
)
KINDS = [pa.string(), pa.int64(), pa.bool_(), pa.float32()]


@given(ROWS, st.integers(1, 50))
def test_the_digest_of_rows_is_that_of_their_json(rows, cut):
    columns = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(KINDS)]
    table = pa.table(columns, names=list("abcd"))
    found = RowDigest()
    for start in range(0, len(rows), cut):
        found.update(table.slice(start, cut))
    text = json.dumps([list(row) for row in rows], separators=(",", ":"), ensure_ascii=True)
    assert found.hexdigest() == hashlib.sha256(text.encode()).hexdigest()


def test_each_distinct_text_is_worked_on_once():
    seen = []
    column = each_distinct(pa.array(["a", None, "b", "a", "b"]), lambda text: seen.append(text) or text.upper())
    assert column.to_pylist() == ["A", None, "B", "A", "B"]
    assert seen == ["a", "b"]


@pytest.mark.parametrize("rows", [1, 7, 100, 1000])
def test_shuffled_rows_come_back_in_order_and_leave_no_file(tmp_path, rows):
    numbers = np.random.default_rng(0).permutation(100)
    with Shuffle(100, tmp_path / "rows", rows=rows) as shuffle:
        for start in range(0, 100, 23):
            part = numbers[start : start + 23]
            shuffle.add(part, pa.table({"text": [f"row {n}" for n in part]}))
        assert (tmp_path / "rows").exists() == (rows < 100)
        blocks = list(shuffle.read())
    assert [len(block) for block in blocks] == [min(rows, 100 - start) for start in range(0, 100, rows)]
    assert pa.concat_tables(blocks)["text"].to_pylist() == [f"row {n}" for n in range(100)]
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize("numbers", [[0, 1, 3], [0, 1, 1, 2], []])
def test_a_shuffle_with_a_missing_or_repeated_row_is_not_read(tmp_path, numbers):
    for rows in (2, 8):
        with Shuffle(4, tmp_path / "rows", rows=rows) as shuffle:
            shuffle.add(np.array(numbers, dtype=np.int64), pa.table({"n": numbers}))
            with pytest.raises(ValueError, match="rows"):
                list(shuffle.read())


def test_batches_are_cut_again(tmp_path):
    table = pa.table({"n": range(1000), "text": [str(n) for n in range(1000)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=170)
    source = ParquetRows(tmp_path / "t.parquet")
    assert (source.n_rows, source.names) == (1000, ["n", "text"])
    blocks = list(in_blocks(source.batches("text"), 300))
    assert [len(block) for block in blocks] == [300, 300, 300, 100]
    assert pa.concat_tables(blocks)["text"].to_pylist() == table["text"].to_pylist()
    assert list(in_blocks([], 3)) == []
    with pytest.raises(KeyError, match="lacks the column x"):
        list(source.batches("x"))


def captions(count: int, *, label: bool) -> pa.Table:
    rng = random.Random(count)
    rows = []
    for number in range(count):
        row = dict.fromkeys(CAPTIONS.names)
        row |= {"image_path": f"{number}.jpg", "image_sha256": rng.choice(SHAS), "pid": rng.randrange(-1, 4)}
        text = None if rng.random() < 0.1 else f'\x1f {row["image_sha256"][:3]} é\u2028" \\ \x85'
        row |= {"camid": rng.randrange(3), "split": rng.choice(("train", "query")), "caption": text, "raw_text": text}
        row["caption"] = None if row["image_sha256"][0] == "a" else text and row["image_sha256"][:3]
        rows.append(row | {"conf_hair": rng.choice((None, -0.1, 0.0, -0.0, float("-inf"))), "truncated": None})
    table = pa.Table.from_pylist(rows, schema=CAPTIONS)
    return table.append_column(LABEL, pa.array([str(n) for n in range(count)], pa.string())) if label else table


def plain_contents(table: pa.Table) -> dict[str, str]:
    """The definition: the digests of JSON lists of Python rows."""

    def digest(rows):
        return hashlib.sha256(json.dumps(rows, separators=(",", ":"), ensure_ascii=True).encode()).hexdigest()

    def rows_of(names):
        return list(zip(*(table[name].to_pylist() for name in names), strict=True))

    rows = rows_of(("split", "pid", "camid", "image_sha256", "caption"))
    trained = sorted((*row[1:-1], caption_text(row[-1])) for row in rows if row[0] == "train" and row[1] != -1)
    return {"train": digest(trained), "audit": digest(rows_of(audited_columns(table.column_names)))}


@pytest.mark.parametrize("count", [0, 1, 400])
@pytest.mark.parametrize("label", [False, True])
def test_contents_of_captions_equal_their_definition(tmp_path, count, label):
    table = captions(count, label=label)
    expected = plain_contents(table)
    assert contents_of_captions(table) == expected
    pq.write_table(table, tmp_path / "captions.parquet", row_group_size=33)
    assert contents_of_captions(ParquetRows(tmp_path / "captions.parquet"), block=50) == expected
    assert contents_of_captions(TableRows(table), block=7) == expected


def test_captions_that_cannot_be_sorted_in_blocks_are_refused():
    table = captions(10, label=False)
    same = {"image_sha256": [SHAS[0]] * 10, "pid": [1] * 10, "camid": [1] * 10, "split": ["train"] * 10}
    same["caption"] = [f"text {9 - n}" for n in range(10)]
    for name, values in same.items():
        table = table.set_column(table.schema.get_field_index(name), CAPTIONS.field(name), pa.array(values))
    assert contents_of_captions(table) == plain_contents(table)
    with pytest.raises(DataError, match="different captions for image"):
        contents_of_captions(table, block=3)
