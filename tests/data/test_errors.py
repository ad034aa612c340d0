"""The words around numbers in messages."""

from __future__ import annotations

import pytest

from data.errors import counted


@pytest.mark.parametrize(
    ("number", "noun", "plural", "text"),
    [
        (0, "query", "", "0 queries"),
        (1, "query", "", "1 query"),
        (2000, "identity", "", "2,000 identities"),
        (1, "gallery image", "", "1 gallery image"),
        (2, "gallery image", "", "2 gallery images"),
        (3, "day", "", "3 days"),
        (2, "file or row", "files or rows", "2 files or rows"),
        (1, "text describes", "texts describe", "1 text describes"),
    ],
)
def test_a_noun_agrees_with_its_number(number, noun, plural, text):
    assert counted(number, noun, plural) == text
