"""Computations in a child process with limits of time and memory."""

from __future__ import annotations

import pytest

from data.process.bounded import TimeLimitError, bounded
from data.process.pattern_search import first_groups


def test_the_first_group_is_found_in_each_text():
    texts = ["cam2/\ud800é.jpg", "x", "cam10"]
    assert first_groups(r"cam(\d+)", texts, seconds=5) == ["2", None, "10"]
    assert first_groups(r"a(b)?", ["a"], seconds=5) == [None]
    assert first_groups(r"(x)", [], seconds=5) == []


def test_a_search_that_does_not_end_is_ended():
    with pytest.raises(TimeLimitError, match="it does not end within 1 s"):
        first_groups("(a+)+!", ["a" * 60], seconds=1)


def test_modules_in_the_working_directory_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('this must not run')")
    monkeypatch.chdir(tmp_path)
    assert first_groups("(a)", ["a"], seconds=5) == ["a"]


def test_a_module_that_fails_is_an_error_with_its_output():
    with pytest.raises(RuntimeError, match=r"data\.process\.nothing failed with status 1: .*No module named"):
        bounded("data.process.nothing", {}, seconds=5)
