"""The Python blocks of the documentation run as printed, on small files with the names that they use."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.artifacts.store import ArtifactStore
from data.schemas import CAPTIONS, IMAGES, RANKINGS, REJECTED
from tests.helpers.evaluations import image_rows, rank, write_evaluation
from tests.helpers.places import REPO

PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
BLOCKS = {
    str(page.relative_to(REPO)): re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    for page in PAGES
}
WITH_CODE = [name for name, blocks in BLOCKS.items() if blocks]


def run_block(code: str, name: str) -> dict:
    names: dict = {}
    exec(compile(code, name, "exec"), names)
    return names


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write the files of a run into the working folder: six images of two people, one without a caption."""
    rows = [
        {
            "image_path": f"{n}.jpg",
            "image_sha256": f"{n:064x}",
            "captioner_fingerprint": "f" * 32,
            "status": "ok" if n else "image_error",
            "caption": "A woman." if n else None,
            "pid": 1 + n // 3,
            "camid": n % 2,
            "split": "train",
            "attr_gender": "male" if n == 4 else "female",
            "attr_upper_color": "red",
            "attr_carrying": "backpack",
            "conf_gender": float(np.log(0.95 if n % 2 else 0.5)),
        }
        for n in range(6)
    ]
    captions = pd.DataFrame(rows, columns=CAPTIONS.names)
    captions = captions.astype({name: float for name in CAPTIONS.names if "conf_" in name})
    captions.to_parquet(tmp_path / "captions.parquet")
    images = captions[["image_path", "pid", "camid", "split"]].rename(columns={"image_path": "path"})
    images.reindex(columns=IMAGES.names).to_parquet(tmp_path / "images.parquet")
    rejected = pd.DataFrame([("a.jpg", "blank", ""), ("b.jpg", "blank", "")], columns=REJECTED.names)
    rejected.to_parquet(tmp_path / "rejected.parquet")
    top = {"top_paths": ["2.jpg", "5.jpg"], "top_pids": [1, 2], "top_camids": [0, 1], "top_scores": [0.9, 0.8]}
    query = {"query_path": "1.jpg", "query_pid": 1, "query_camid": 1, "ap": 1.0, "inp": 1.0, "first_hit": 1}
    ranked = [{"model": model, "mode": "image", "n_relevant": 1, **query, **top} for model in ("untrained", "trained")]
    pd.DataFrame(ranked, columns=RANKINGS.names).to_parquet(tmp_path / "rankings.parquet")
    result = {"model": "trained", "mode": "image", "mAP": 0.5, "rank1": 0.4, "mINP": 0.3}
    metrics = {"protocol": {"description": "Single query."}, "results": [result]}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    vectors = np.eye(6, 3, dtype=np.float32) + np.float32(0.5)
    pd.DataFrame({"path": images["path"], "embedding": list(vectors)}).to_parquet(tmp_path / "features.parquet")
    place = {"model": "trained", "mode": "image", "query_path": "1.jpg", "gallery_path": "2.jpg", "score": 0.5}
    (tmp_path / "results").mkdir()
    pd.DataFrame([{**place, "rank": 1, "match": False}]).to_parquet(tmp_path / "results/rank_lists.parquet")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _model(tmp_path):
    """Write a model of the recipe demo and two images."""
    from tests.helpers.small_models import write_model

    store = ArtifactStore.default()
    store.record_use(write_model(store), dataset="demo", recipe="demo")
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (20, 40), "red").save(tmp_path / name)


@pytest.fixture
def _evaluations():
    """Write one evaluation of each of the recipes benchmark and demo."""
    images = image_rows()
    for seed, recipe in enumerate(("benchmark", "demo")):
        write_evaluation(ArtifactStore.default(), images, rank(images, noise=1, seed=seed), recipe=recipe)


def export_for(page: str) -> None:
    """Write the export that docs/export.md reads."""
    from flows.cli.app import main

    if page == "docs/export.md":
        assert main(["export", "demo", "-o", "exported", "--mode", "image"]) == 0


@pytest.mark.parametrize("page", WITH_CODE)
@pytest.mark.usefixtures("files", "_model", "_evaluations")
def test_the_code_runs(page, capsys):
    export_for(page)
    capsys.readouterr()
    for code in BLOCKS[page]:
        run_block(code, page)
        assert capsys.readouterr().out.strip()  # each block shows something


@pytest.mark.usefixtures("files")
def test_the_cookbook_finds_what_it_says(capsys):
    *_, code = BLOCKS["docs/captions.md"]
    names = run_block(code, "docs/captions.md")
    assert names["captions"]["sure_gender"].notna().sum() == 3
    assert names["votes"].query("nunique > 1").index.tolist() == [2]
    assert len(names["joined"]) == 6
    assert "image_error" in capsys.readouterr().out


@pytest.mark.usefixtures("files")
def test_the_second_correction_is_told(capsys):
    code, _ = BLOCKS["docs/captions.md"]
    run_block(code, "docs/captions.md")
    told = capsys.readouterr().out
    assert told.startswith("1 A woman is wearing a green upper garment. green\n")
    assert "was changed meanwhile by ada" in told
    assert told.endswith("in effect: A woman is wearing a green upper garment.\n")


@pytest.mark.usefixtures("files")
def test_shown_images_are_marked_right_or_wrong():
    *_, code = BLOCKS["docs/search.md"]
    names = run_block(code, "docs/search.md")
    assert names["shown"]["right"].tolist() == [True, False]
    assert names["hardest"]["query_path"].tolist() == ["1.jpg"]
