"""Checks of model files without a framework: file type, stored tensors, non-finite values."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from data.errors import WeightsError
from data.weights import (
    INDEX,
    WEIGHTS,
    differences,
    few,
    file_problem,
    model_tensors,
    nonfinite,
    read_model_json,
    read_tensors,
)

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4988025760\n"
DISGUISES = {
    "git_lfs": (LFS, "is a git-LFS pointer.*git lfs pull"),
    "git_annex": (b"/annex/objects/SHA256E-s12--ab.safetensors\n", "git-annex pointer.*git annex get"),
    "empty": (b"", "is empty: download or copy it again"),
    "zeros": (bytes(4096), "nothing but zero bytes.*interrupted download"),
    "html": (b"\n<!DOCTYPE html><html><head><title>Sign in</title>", "is an HTML page"),
    "html_after_a_byte_order_mark": (b"\xef\xbb\xbf<HTML>", "is an HTML page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "is an XML page"),
    "hub_error": (b"Entry not found", "Entry not found"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0", "is a gzip archive: unpack"),
    "gguf": (b"GGUF\x03\0\0\0", "is a GGUF file"),
}
PICKLES = {"zip": b"PK\x03\x04archive/data.pkl", "old": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."}


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / WEIGHTS
    save_file({"a": np.ones((2, 3), np.float32), "b": np.arange(5, dtype=np.int64)}, path)
    return path


def refusal(call, *arguments) -> str:
    with pytest.raises(WeightsError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert "delete" not in message  # these are the user's files
    return message


# File types


@pytest.mark.parametrize("kind", DISGUISES)
@pytest.mark.parametrize(("call", "name"), [(read_tensors, WEIGHTS), (read_model_json, "tokenizer.json")])
def test_what_downloads_leave_behind_is_named(tmp_path, kind, call, name):
    content, expected = DISGUISES[kind]
    (tmp_path / name).write_bytes(content)
    message = refusal(call, tmp_path / name)
    assert message.startswith(str(tmp_path / name))
    assert re.search(expected, message)


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_is_named_and_never_read(tmp_path, kind):
    (tmp_path / WEIGHTS).write_bytes(PICKLES[kind] + bytes(100))
    assert "is a PyTorch pickle" in refusal(read_tensors, tmp_path / WEIGHTS)


def test_absent_files_dead_links_and_folders(tmp_path):
    (tmp_path / "link").symlink_to("../blobs/abc")
    assert "is a link to ../blobs/abc, which does not exist" in refusal(read_tensors, tmp_path / "link")
    assert "does not exist" in refusal(read_tensors, tmp_path / "nothing")
    assert "is a folder" in refusal(read_tensors, tmp_path)


def test_whole_files_are_what_they_seem(weights):
    assert file_problem(weights) is None
    read_tensors(weights)
    stored = read_tensors(weights)
    assert {name: (entry.dtype, entry.shape) for name, entry in stored.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("I64", (5,)),
    }


def test_a_cut_file_is_named_wherever_it_is_cut(weights):
    content = weights.read_bytes()
    for length in range(1, len(content)):
        weights.write_bytes(content[:length])
        message = refusal(read_tensors, weights)
        assert "is cut off" in message if length > 8 else "is not a safetensors file" in message
    weights.write_bytes(content[: len(content) - 1])
    assert f"is cut off ({len(content) - 1} of {len(content)} bytes)" in refusal(read_tensors, weights)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda content: content + b"rest", "is damaged"),
        (lambda content: content.replace(b"data_offsets", b"data_0ffsets"), "has a damaged header"),
        (lambda content: b"hello, this is a text file about weights", "is not a safetensors file"),
    ],
    ids=["longer", "header", "text"],
)
def test_other_damage_is_named(weights, change, expected):
    weights.write_bytes(change(weights.read_bytes()))
    assert expected in refusal(read_tensors, weights)


# JSON files of a model folder


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"model_type": "llava", "text_', "is cut off after 30 bytes"),
        (b'{"model_type": llava}', "is not valid JSON"),
        (b'{"name": "\xff"}', "is not valid JSON"),
        (b'["llava"]', "holds a JSON list; expected an object"),
        (b"null", "holds a JSON NoneType; expected an object"),
        (b"[" * 100_000, "is cut off"),
    ],
    ids=["cut", "wrong", "encoding", "list", "null", "deep"],
)
def test_damaged_json_is_named(tmp_path, content, expected):
    (tmp_path / "config.json").write_bytes(content)
    assert expected in refusal(read_model_json, tmp_path / "config.json")


# Folders


def save_shards(folder, shards, listed) -> None:
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed}))


def test_shards_are_read_as_one_model(tmp_path):
    one = np.ones(2, np.float32)
    save_shards(
        tmp_path,
        {"x.safetensors": {"a": one}, "y.safetensors": {"b": one}},
        {"a": "x.safetensors", "b": "y.safetensors"},
    )
    stored = model_tensors(tmp_path)
    assert {name: entry.file.name for name, entry in stored.items()} == {"a": "x.safetensors", "b": "y.safetensors"}


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ({"a": "x.safetensors", "b": "x.safetensors"}, "not in the shard it names: b"),
        ({"a": "x.safetensors", "b": "z.safetensors"}, "z.safetensors does not exist"),
        ({"a": "../x.safetensors"}, "outside its folder"),
        ({"a": "/etc/passwd"}, "outside its folder"),
        ({}, "is not an index of shards"),
        ({"a": 3}, "is not an index of shards"),
    ],
    ids=["absent_tensor", "absent_shard", "above", "absolute", "nothing", "number"],
)
def test_an_index_that_does_not_fit_is_named(tmp_path, listed, expected):
    save_shards(tmp_path, {"x.safetensors": {"a": np.ones(2, np.float32)}}, listed)
    assert expected in refusal(model_tensors, tmp_path)


def test_a_tensor_in_two_shards_is_named(tmp_path):
    one = {"a": np.ones(2, np.float32)}
    twice = {"x.safetensors": one | {"c": one["a"]}, "y.safetensors": one}
    save_shards(tmp_path, twice, {"c": "x.safetensors", "a": "y.safetensors"})
    assert "store the same tensors: a" in refusal(model_tensors, tmp_path)


def test_one_file_goes_before_an_index(tmp_path, weights):
    save_shards(tmp_path, {}, {"other": "absent.safetensors"})
    assert sorted(model_tensors(tmp_path)) == ["a", "b"]


# Values


def save_raw(path, dtype: str, content: bytes, size: int) -> None:
    header = json.dumps({"w": {"dtype": dtype, "shape": [len(content) // size], "data_offsets": [0, len(content)]}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + content)


@pytest.mark.parametrize(
    ("dtype", "size", "largest", "bad"),
    [
        ("F64", 8, 0x7FEF_FFFF_FFFF_FFFF, [0xFFF0_0000_0000_0000, 0x7FF8_0000_0000_0001]),
        ("F32", 4, 0x7F7F_FFFF, [0xFF80_0000, 0x7FC0_0001]),
        ("F16", 2, 0x7BFF, [0xFC00, 0x7E01]),
        ("BF16", 2, 0x7F7F, [0xFF80, 0x7FC1]),
        ("F8_E5M2", 1, 0x7B, [0xFC, 0x7E]),
        ("F8_E4M3", 1, 0x7E, [0xFF, 0x7F]),
        ("I64", 8, 0x7FFF_FFFF_FFFF_FFFF, []),
        ("U8", 1, 0xFF, []),
    ],
)
def test_nan_and_infinity_are_found_in_every_format(tmp_path, dtype, size, largest, bad):
    finite = (largest.to_bytes(size, "little") + bytes(size)) * 10
    for value in (None, *bad):
        content = finite + (b"" if value is None else value.to_bytes(size, "little"))
        save_raw(tmp_path / WEIGHTS, dtype, content, size)
        assert nonfinite(read_tensors(tmp_path / WEIGHTS)) == ([] if value is None else ["w"])


@pytest.mark.parametrize("position", [0, 1 << 22, (1 << 22) + 1, -1])
def test_one_bad_value_is_found_wherever_it_is(tmp_path, position):
    values = np.ones((1 << 22) + 7, np.float32)  # a little over one block
    values[position] = np.nan
    save_file({"good": np.ones(3, np.float32), "bad": values, "empty": np.ones(0, np.float32)}, tmp_path / WEIGHTS)
    assert nonfinite(read_tensors(tmp_path / WEIGHTS)) == ["bad"]


# Messages


def test_differences_name_a_few_and_count_all():
    missing = [f"layer.{i}" for i in range(9)]
    assert differences(missing, ["x"], {"w": ((2, 3), (4, 3))}) == [
        "missing 9 tensors: layer.0, layer.1, layer.2 and 6 more",
        "unexpected 1 tensor: x",
        "wrong shape of 1 tensor: w is [2, 3] and should be [4, 3]",
    ]
    assert differences([], [], {}) == []
    assert few(["b", "a"]) == "a, b"


def test_no_framework_is_imported():
    code = "import sys, data.weights; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
