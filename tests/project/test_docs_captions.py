"""The pandas cookbook of docs/captions.md runs as it stands."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from data.schemas import CAPTIONS, IMAGES
from tests.helpers.places import REPO

CODE = re.findall(r"^```python\n(.*?)^```", (REPO / "docs/captions.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_cookbook_runs(tmp_path, monkeypatch, capsys):
    rows = [
        {
            "image_path": f"{n}.jpg",
            "status": "ok" if n else "image_error",
            "pid": 1 + n // 3,
            "camid": n % 2,
            "split": "train",
            "attr_gender": "male" if n == 4 else "female",
            "attr_carrying": "backpack",
            "conf_gender": float(np.log(0.95 if n % 2 else 0.5)),
        }
        for n in range(6)
    ]
    captions = pd.DataFrame(rows, columns=CAPTIONS.names).astype(
        {name: float for name in CAPTIONS.names if "conf_" in name}
    )
    captions.to_parquet(tmp_path / "captions.parquet")
    images = captions[["image_path", "pid", "camid", "split"]].rename(columns={"image_path": "path"})
    images.reindex(columns=IMAGES.names).to_parquet(tmp_path / "images.parquet")
    monkeypatch.chdir(tmp_path)
    (code,) = CODE
    names: dict = {}
    exec(compile(code, "docs/captions.md", "exec"), names)
    assert names["captions"]["sure_gender"].notna().sum() == 3
    assert names["votes"].query("nunique > 1").index.tolist() == [2]
    assert len(names["joined"]) == 6
    assert "image_error" in capsys.readouterr().out
