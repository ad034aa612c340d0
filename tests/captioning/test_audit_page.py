"""The audit page is frozen: the same captions give the same bytes as before.

    python -m tests.captioning.test_audit_page

rewrites the golden file after a change that is meant to alter the page (which CHANGELOG.md then names).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.config import AuditConfig
from data.artifacts.store import ArtifactStore
from data.schemas import CAPTIONS, LABEL
from tests.captioning.test_audit import audited, caption
from tests.helpers.places import GOLDEN
from tests.helpers.stages import audit, make_artifact

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


def test_text_labels_are_shown_escaped_and_cut(tmp_path):
    labels = {7: 'Anna <b>&\n"x"', 8: "👩‍👧 שלום", 9: "ü" * 200, 10: ""}
    labeled = [row | {"image_path": f"{at:05d}.jpg"} for at, row in enumerate(rows())]

    def captions(folder: Path) -> None:
        table = pa.Table.from_pylist(labeled, schema=CAPTIONS)
        column = pa.array([labels.get(row["pid"], "") for row in labeled])
        pq.write_table(table.append_column(LABEL, column), folder / "captions.parquet")

    store = ArtifactStore(tmp_path)
    made = audit(store, captions=make_artifact(store, "caption", {}, captions).ref, config=AuditConfig())
    shown = (made.ref.folder / "captions.audit.html").read_text(encoding="utf-8")
    assert "<h3>Identity <bdi>Anna &lt;b&gt;&amp; &quot;x&quot;</bdi> (pid&nbsp;7) <span" in shown
    assert "identity <bdi>👩‍👧 שלום</bdi> (pid&nbsp;8) · c1" in shown
    assert f'identity <bdi title="{"ü" * 200}">{"ü" * 23}…</bdi> (pid&nbsp;9) · c1' in shown
    assert "identity 10 · c1 · train" in shown
    assert "identity -1 · c1 · gallery" in shown
    assert "ü" * 24 not in shown.replace(f'title="{"ü" * 200}"', "")


def main() -> None:
    """Write the golden file."""
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(page(Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
