"""One command trains CLIP-ReID on somebody's own images: a folder, a CSV file, no captioner."""

from __future__ import annotations

import pandas as pd
import pytest

from data.datasets import load_dataset
from data.files import read_json
from data.synthetic.world import WorldConfig, write_market1501
from flows.cli.app import main

pytestmark = pytest.mark.xdist_group("flow")

# The recipe is for ViT-B/16 on a GPU: here with the embedded CLIP, and briefly.
SMALL = (
    'train.backbone={"name": "tiny", "weights": "shipped", "height": 128, "width": 64}',
    "train.batch.identities=3",
    "train.schedule.epochs=1",
    "train.prompts.epochs=2",
    "train.device=cpu",
)


def test_clip_reid_on_a_manifest_of_ones_own(prefect_server, tmp_path, capsys):
    root, home = tmp_path / "mine", tmp_path / "home"
    world = WorldConfig(seed=8, train_identities=4, test_identities=3, images_per_camera=2, cameras=2)
    write_market1501(root / "pictures", world)
    rows = load_dataset("market1501", root / "pictures")
    table = pd.DataFrame({name: [getattr(row, name) for row in rows] for name in ("path", "split", "pid", "camid")})
    table["path"] = "pictures/" + table["path"]
    table.loc[len(table)] = ("pictures/lost.jpg", "train", 1, 1)
    table.to_csv(root / "manifest.csv", index=False)
    settings = [word for text in (f"data.root={root}", *SMALL) for word in ("--set", text)]
    assert main(["run", "manifest_clip_reid", "--home", str(home), *settings]) == 0
    (model,) = (home / "stages" / "train").iterdir()
    described = read_json(model / "config.json")
    assert described["config"]["method"] == "clip_reid"
    assert described["config"]["loss"]["id_weight"] == 0.25
    assert described["provenance"]["dataset"] == "manifest"
    (figures,) = (home / "stages" / "evaluate").iterdir()
    metrics = read_json(figures / "metrics.json")
    assert [(row["model"], row["mode"]) for row in metrics["results"]] == [("untrained", "image"), ("trained", "image")]
    assert not (home / "stages" / "caption").exists()
    told = capsys.readouterr()
    assert metrics["protocol"]["description"] in " ".join(told.out.split()), "how the figures were got"
    (notice,) = [line for line in told.err.splitlines() if line.startswith("! ")]
    assert "lost.jpg" in notice, "what a person should know of the data is told at once"


def test_data_without_cameras_is_evaluated_as_the_setting_says(prefect_server, tmp_path, capsys):
    root, home = tmp_path / "mine", tmp_path / "home"
    world = WorldConfig(seed=8, train_identities=4, test_identities=3, images_per_camera=2, cameras=2)
    write_market1501(root / "pictures", world)
    rows = load_dataset("market1501", root / "pictures")
    table = pd.DataFrame({name: [getattr(row, name) for row in rows] for name in ("path", "split", "pid")})
    table.assign(path="pictures/" + table["path"], camid=0).to_csv(root / "manifest.csv", index=False)
    settings = [word for text in (f"data.root={root}", *SMALL) for word in ("--set", text)]
    command = ["run", "manifest_clip_reid", "--home", str(home), *settings]
    assert main([*command, "--set", "evaluate.exclude=none"]) == 0
    (figures,) = (home / "stages" / "evaluate").iterdir()
    protocol = read_json(figures / "metrics.json")["protocol"]
    assert protocol["n_skipped_queries"] == 0
    assert "Images are not excluded by camera" in protocol["description"]
    assert "evaluation skips them" not in capsys.readouterr().err
    assert main(command) == 1
    assert "--set evaluate.exclude=none" in " ".join(capsys.readouterr().err.split())
