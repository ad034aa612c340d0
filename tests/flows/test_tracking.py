"""The commands of docs/training.md that watch and record a training, run on the small demo."""

import re
import shlex
import shutil

import pytest

from flows.cli.app import main
from reid.training.tracking import DATABASE, EXPERIMENT, _isolated
from tests.helpers.places import REPO
from tests.helpers.small_runs import FINISHED_RUN

pytestmark = pytest.mark.xdist_group("flow")

_, SECTION = (REPO / "docs/training.md").read_text(encoding="utf-8").split("## Watching and recording a training\n")
COMMANDS = re.findall(r"^clip-scgi .*", SECTION, re.MULTILINE)


def test_the_commands_record_what_they_say(finished, tmp_path, monkeypatch, capfd):
    home = shutil.copytree(finished[0], tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    settings = [f"--set={text}" for text in FINISHED_RUN]
    assert len(COMMANDS) == 3
    for seed, command in enumerate(COMMANDS, start=101):  # another seed, so that the training is not cached
        words = shlex.split(command)[1:]
        assert main([*words, *settings, f"--set=train.seed={seed}", "--home", str(home)]) == 0
    printed = capfd.readouterr()
    places = [line.split(maxsplit=1)[1] for line in printed.out.splitlines() if line.startswith("recorded ")]
    board, *runs = places
    assert board == f"TensorBoard: {tmp_path / 'runs/board'}"
    for place, store in zip(runs, (f"sqlite:///{home / DATABASE}", "sqlite:///runs.db"), strict=True):
        assert re.fullmatch(rf"MLflow: {re.escape(store)}, run [0-9a-f]{{32}}", place)
    assert "INFO mlflow" not in printed.out + printed.err
    assert list((tmp_path / "runs/board").glob("events.out.tfevents.*"))
    with _isolated():
        from mlflow import MlflowClient

        for place in (home / DATABASE, tmp_path / "runs.db"):
            client = MlflowClient(tracking_uri=f"sqlite:///{place}")
            (run,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
            assert run.info.status == "FINISHED"
            assert run.data.tags["clip_scgi.captions"]
            assert "epoch/loss" in run.data.metrics
