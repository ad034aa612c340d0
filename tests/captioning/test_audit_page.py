"""The audit page is frozen: the same captions give the same bytes as before.

    python -m tests.captioning.test_audit_page

rewrites the golden file after a change that is meant to alter the page (which CHANGELOG.md then names).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.captioning.test_audit import audited, caption
from tests.helpers.places import GOLDEN

PAGE = GOLDEN / "audit_page.html"
RED = "A man is wearing a red shirt and black pants. The man is carrying a backpack."
BLUE = "A woman is wearing a blue shirt and black pants. The woman is carrying a pink handbag."


def rows() -> list[dict]:
    """Return captions of three splits, among them doubtful, hostile, cut-off and missing ones."""
    found = [caption(text, 7, split=split) for split in ("train", "query") for text in (RED, RED, RED, BLUE)]
    found += [caption("A fat man <b>is</b> wearing a red shirt.", pid, split="gallery") for pid in (8, 9, -1)]
    found += [caption(RED, 9, status="truncated"), caption("the the the the", 9, status="unparsed")]
    return [*found, caption(None, 10, status="image_error", error="file ends early")]


def page(folder: Path) -> str:
    return (audited(folder, rows())[3] / "captions.audit.html").read_text(encoding="utf-8")


def test_the_page_is_the_same(tmp_path):
    assert page(tmp_path) == PAGE.read_text(encoding="utf-8")


def main() -> None:
    """Write the golden file."""
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(page(Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
