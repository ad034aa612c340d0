"""``clip-scgi export`` of a trained recipe: files, differences, and a model card with data, captions and scores."""

import pytest
import yaml

from data.files import read_json
from flows.cli.app import main
from tests.helpers.places import REPO

pytestmark = pytest.mark.xdist_group("flow")


@pytest.fixture(scope="module")
def exported(finished, module_folder):
    home, summary = finished
    out = module_folder("released") / "model"
    assert main(["export", "demo", "--home", str(home), "-o", str(out), "--format", "open_clip"]) == 0
    return out, summary, home


def test_the_card_is_written_from_provenance(exported):
    out, summary, home = exported
    card = (out / "README.md").read_text()
    model, evaluation = summary.find("train").artifact, summary.find("evaluate").artifact
    described = read_json(model.folder / "config.json")
    assert f"Fingerprint of the model: `{model.fingerprint}`" in card
    assert described["provenance"]["dataset_hash"] in card
    assert f"Trained on {described['training']['images']:,} images of 6 identities" in card
    assert "train: " in card
    assert "clip-scgi/tiny-llava, revision" in card
    assert "Captions of the train split by status: " in card
    assert f"Evaluation `{evaluation.fingerprint}`" in card
    assert '"method": "clip_scgi"' in card
    assert "surveillance technology" in card
    assert str(home) not in card
    assert str(REPO) not in card


def test_scores_have_intervals(exported):
    out, summary, _ = exported
    metrics = read_json(summary.find("evaluate").artifact.folder / "metrics.json")
    card = (out / "README.md").read_text()
    (image,) = (row for row in metrics["results"] if (row["model"], row["mode"]) == ("trained", "image"))
    (line,) = (line for line in card.splitlines() if line.startswith("| trained | image |"))
    value, *ends = line.split("|")[3].replace("[", " ").replace("]", " ").replace(",", " ").split()
    assert value == f"{100 * image['mAP']:.1f}"
    low, high = map(float, ends)
    assert low <= float(value) <= high
    assert "95 % interval (percentile bootstrap over queries" in card


def test_the_front_matter_is_yaml(exported):
    out, summary, _ = exported
    front = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    metrics = read_json(summary.find("evaluate").artifact.folder / "metrics.json")
    (results,) = (entry["results"] for entry in front["model-index"])
    (image,) = (row for row in metrics["results"] if (row["model"], row["mode"]) == ("trained", "image"))
    values = {one["name"]: one["value"] for one in results[0]["metrics"]}
    assert values["mAP (image)"] == round(100 * image["mAP"], 2)
    assert front["license"] == "other"
    assert "clip_scgi" in front["tags"]


def test_what_cannot_work_is_one_message(finished, tmp_path, capsys):
    home, _ = finished
    (tmp_path / "mine.txt").touch()
    assert main(["export", "demo", "--home", str(home), "-o", str(tmp_path)]) == 1
    assert "exists and is not an earlier export" in capsys.readouterr().err
    assert main(["export", "nothing", "--home", str(home), "-o", str(tmp_path / "out")]) == 1
    assert "'nothing' does not name a trained model" in capsys.readouterr().err
