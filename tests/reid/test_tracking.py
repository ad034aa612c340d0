"""Training runs in MLflow: a local database or folder, runs that continue, servers that fail, and the environment."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys

import pytest
from pydantic import ValidationError

from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.errors import ConfigError
from data.files import read_json
from data.index.stage import index
from data.synthetic.world import WorldConfig, write_market1501
from reid.config.train import BatchConfig, TrainConfig
from reid.config.trained import RECORDED_FILE
from reid.tasks.build import build_task
from reid.training import tracking
from reid.training.metrics_log import METRICS_FILE
from reid.training.tracking import DATABASE, EXPERIMENT, RECORD_FILE, MlflowTracker, TrackedRun, parameters_of
from reid.training.trainer import fit
from tests.helpers.reid_worlds import KilledError, small_config, training_set
from tests.helpers.stages import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    return training_set()


@pytest.fixture(scope="module")
def database(module_folder):
    """A database without runs, whose tables take MLflow a second to make."""
    path = module_folder("mlflow") / "mlflow.db"
    with tracking._isolated():
        client_of(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(database, tmp_path):
    """A database of the test's own."""
    return f"sqlite:///{shutil.copyfile(database, tmp_path / 'mlflow.db')}"


@pytest.fixture
def config():
    return small_config(method="clip_baseline")


def tracked(uri, **changes):
    return TrackedRun(**{"uri": uri, "name": "toy", "parameters": {"train.seed": "0"}, "tags": {"a": "b"}, **changes})


def client_of(uri):
    with tracking._isolated():
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=uri)


def runs(uri):
    with tracking._isolated():
        client = client_of(uri)
        return client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])


def history(uri, run, name):
    with tracking._isolated():
        return [(point.step, point.value) for point in client_of(uri).get_metric_history(run.info.run_id, name)]


def run_fit(data, config, folder, uri, *, progress=lambda *_: None):
    fit(
        build_task(config, identities=8),
        data,
        config,
        folder=folder,
        tracker=MlflowTracker(tracked(uri), folder),
        progress=progress,
    )


def logged(folder, kind):
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize("form", ["sqlite:///{}/mlflow.db", "file://{}/mlruns"])
def test_a_local_store_gets_parameters_metrics_and_tags(data, config, tmp_path, form):
    uri = form.format(tmp_path)
    run_fit(data, config, tmp_path / "run", uri)
    (run,) = runs(uri)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "toy")
    assert run.data.params == {"train.seed": "0"}
    assert run.data.tags["a"] == "b"
    assert run.info.artifact_uri.startswith(f"file://{tmp_path}/mlruns/")
    steps = logged(tmp_path / "run", "step")
    assert history(uri, run, "step/loss") == [(line["step"], pytest.approx(line["loss"])) for line in steps]
    assert history(uri, run, "step/lr/clip") == [(line["step"], line["lr"]["clip"]) for line in steps]
    assert [step for step, _ in history(uri, run, "epoch/images_per_second")] == [2, 4]


def test_a_killed_training_continues_its_run_and_sends_nothing_twice(data, config, tmp_path, uri):
    def kill(done, total, note):
        if done == 3:
            raise KilledError

    with pytest.raises(KilledError):
        run_fit(data, config, tmp_path / "run", uri, progress=kill)
    assert [run.info.status for run in runs(uri)] == ["FAILED"]
    run_fit(data, config, tmp_path / "run", uri)
    (run,) = runs(uri)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(uri, run, "step/loss")] == [1, 2, 3, 4]
    assert [step for step, _ in history(uri, run, "epoch/loss")] == [2, 4]


def test_a_deleted_run_or_another_store_begins_a_new_run(tmp_path, uri, database):
    folder = tmp_path / "run"
    for _ in range(2):
        tracker = MlflowTracker(tracked(uri), folder)
        tracker.write("epoch", 1, {"loss": 1.0})
        tracker.close("KILLED")
    (run,) = runs(uri)
    assert history(uri, run, "epoch/loss") == [(1, 1.0)]
    with tracking._isolated():
        client_of(uri).delete_run(run.info.run_id)
    tracker = MlflowTracker(tracked(uri), folder)
    tracker.write("epoch", 2, {"loss": 2.0})
    tracker.close("FINISHED")
    assert [found.info.run_id for found in runs(uri)] != [run.info.run_id]
    other = f"sqlite:///{shutil.copyfile(database, tmp_path / 'other.db')}"
    tracker = MlflowTracker(tracked(other), folder)
    tracker.write("epoch", 1, {"loss": 1.0})
    assert history(other, runs(other)[0], "epoch/loss") == [(1, 1.0)]


def test_a_server_that_fails_is_reported_once_and_the_training_goes_on(data, config, tmp_path, caplog):
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with caplog.at_level(logging.WARNING, "reid.training.tracking"):
            run_fit(data, config, tmp_path / "run", uri)
    first, last = (record.getMessage() for record in caplog.records if record.name == "reid.training.tracking")
    assert first.startswith("MLflow cannot record this training (")
    assert "train.tracking=none" in first
    assert last.startswith("MLflow: the last ")
    assert len(logged(tmp_path / "run", "step")) == 4


def test_what_a_failing_server_missed_is_sent_when_it_works_again(tmp_path, uri, monkeypatch):
    tracker = MlflowTracker(tracked(uri), tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(tracker, "_started", lambda: 1 / 0)
        tracker.write("epoch", 1, {"loss": 1.0})
    tracker.write("epoch", 2, {"loss": 2.0})  # within the minute: not tried
    assert tracker.recorded() == {}
    assert not (tmp_path / "run" / RECORD_FILE).exists()
    tracker._retry_at = 1e-9
    tracker.write("epoch", 3, {"loss": 3.0})
    (run,) = runs(uri)
    assert history(uri, run, "epoch/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    tracker.write("step", 4, {"loss": 4.0})  # waits for the end of the epoch
    assert tracker.recorded() == {"uri": uri, "run_id": run.info.run_id, "missing": 1}


def test_the_train_stage_records_fingerprints_and_by_default_nothing(tmp_path, monkeypatch):
    store = ArtifactStore(tmp_path / "home")
    root = tmp_path / "market"
    write_market1501(root, WorldConfig(seed=5, train_identities=4, test_identities=2, images_per_camera=2, cameras=2))
    images = index(store, config=DatasetConfig(name="toy", reader="market1501", root=str(root))).made.ref
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    monkeypatch.chdir(tmp_path)
    config = small_config(method="clip_baseline", batch=BatchConfig(identities=3, images=2))
    plain = train(store, images=images, images_root=root, captions=None, config=config)
    assert not list(tmp_path.rglob("*.db"))
    changed = config.model_copy(update={"tracking": "mlflow", "seed": 1})
    made = train(store, images=images, images_root=root, captions=None, config=changed)
    uri = f"sqlite:///{store.root / DATABASE}"
    (run,) = runs(uri)
    tags = run.data.tags
    assert tags["clip_scgi.fingerprint"] == made.ref.fingerprint
    assert tags["clip_scgi.artifact"] == made.ref.path
    assert tags["clip_scgi.images"] == images.fingerprint
    assert tags["clip_scgi.dataset"] == "toy"
    assert run.info.run_name == f"toy clip_baseline {made.ref.fingerprint[:8]}"
    assert run.data.params["train.schedule.lr_clip"] == "0.0001"
    assert run.data.params["train.backbone.name"] == "tiny"
    assert [path.name for path in tmp_path.rglob("*.db")] == [DATABASE]
    assert not (tmp_path / "mlruns").exists()
    own, other = ({path.name for path in one.ref.folder.iterdir()} for one in (made, plain))
    assert own - other == {RECORDED_FILE}
    assert other <= own
    assert read_json(made.ref.folder / RECORDED_FILE) == {
        "mlflow": {"uri": uri, "run_id": run.info.run_id, "missing": 0}
    }


def test_tracking_is_no_part_of_the_fingerprint():
    changed = TrainConfig(tracking="mlflow", tracking_uri="http://127.0.0.1:5000")
    assert changed.identity() == TrainConfig().identity()
    assert not [name for name in parameters_of(changed) if "tracking" in name]


@pytest.mark.parametrize("uri", ["mlruns", "databricks", "sqlite:mlflow.db", "http://", "ftp://host/x"])
def test_a_store_that_mlflow_would_guess_at_is_refused(uri):
    with pytest.raises(ValidationError, match=r"such as sqlite:///mlflow\.db"):
        TrainConfig(tracking_uri=uri)


def test_a_password_is_refused_and_not_repeated():
    with pytest.raises(ValidationError, match="MLFLOW_TRACKING_PASSWORD"):
        TrainConfig(tracking_uri="http://me:hunter2@127.0.0.1:5000")


def test_mlflow_reads_no_variable_but_credentials_and_sends_no_telemetry(tmp_path, uri, monkeypatch):
    given = {"MLFLOW_TRACKING_URI": "http://nowhere", "_MLFLOW_TESTING_TELEMETRY": "true", "MLFLOW_TRACKING_TOKEN": "t"}
    for name, value in {**given, "DO_NOT_TRACK": "false"}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with tracking._isolated():
        names = {name for name in os.environ if name.lstrip("_").startswith("MLFLOW_")} - tracking._SET.keys()
        assert names == {"MLFLOW_TRACKING_TOKEN"}
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert dict(os.environ) == before
    code = f"""
import socket
def refuse(*_): raise AssertionError("a connection")
socket.socket.connect = socket.getaddrinfo = refuse
from pathlib import Path
from reid.training.tracking import MlflowTracker, TrackedRun
run = TrackedRun(uri={uri!r}, name="n", parameters={{}}, tags={{}})
tracker = MlflowTracker(run, Path({str(tmp_path)!r}))
tracker.write("epoch", 1, {{"loss": 1.0}})
tracker.close("FINISHED")
from mlflow.telemetry import get_telemetry_client
assert get_telemetry_client() is None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "MLflow cannot" not in done.stderr
    assert read_json(tmp_path / RECORD_FILE)["sent"] == [1, 1]


def test_without_the_extra_the_message_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'clip-scgi\[mlflow\]', or set train.tracking=none"):
        MlflowTracker(tracked("sqlite:///x.db"), tmp_path)
