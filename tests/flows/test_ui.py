"""Progress, tables and pictures in Prefect's UI, and runs that go on without it."""

from __future__ import annotations

import base64
import io
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.artifacts.store import ArtifactStore
from data.files import write_json
from flows.execution import ui
from flows.execution.ui_pictures import ranking_picture
from tests.helpers.stages import make_artifact


@pytest.fixture
def sent(monkeypatch) -> list:
    """Everything that would be sent to a server, in order."""
    calls: list = []

    def record(name):
        def call(*args, **kwargs):
            calls.append((name, args, kwargs))
            return "an id"

        return call

    for name in (
        "create_progress_artifact",
        "update_progress_artifact",
        "create_table_artifact",
        "create_image_artifact",
    ):
        monkeypatch.setattr(ui, name, record(name))
    monkeypatch.setattr(ui, "in_run", lambda: True)
    return calls


def _metrics(m_ap: float, dataset: str = "people", test_hash: str = "h") -> dict:
    row = {"mAP": m_ap, "mINP": 0.1, "rank1": 0.5, "rank5": 0.6, "rank10": 0.7, "cmc": [0.5, 0.6, 0.7]}
    protocol = {"dataset": dataset, "test_hash": test_hash, "n_query": 5, "n_gallery": 20}
    return {"protocol": protocol, "results": [{"model": "trained", "mode": "image"} | row]}


def _evaluation(store: ArtifactStore, number: int, metrics: dict):
    return make_artifact(
        store, "evaluate", {"n": number}, lambda folder: write_json(folder / "metrics.json", metrics)
    ).ref


def test_progress_is_sent_every_few_seconds_and_at_the_end(sent):
    now = [0.0]
    shown = []
    bar = ui.Bar("caption", lambda *call: shown.append(call), clock=lambda: now[0])
    for done in range(1, 101):
        now[0] = done * 0.11
        bar(done, 100, "images")
    bar.finish()
    assert len(shown) == 100
    assert [name for name, _, _ in sent] == ["create_progress_artifact"] + ["update_progress_artifact"] * 3
    assert sent[0][2]["key"] == "caption-progress"
    assert sent[-1][2]["progress"] == 100.0
    assert sent[-1][2]["description"] == "caption: 100 of 100 images"


def test_a_stage_that_finds_its_artifact_does_not_show_a_bar(sent):
    with ui.progress_artifact("train"):
        pass
    assert sent == []


def test_an_unreachable_server_does_not_stop_a_run(sent, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no server")

    monkeypatch.setattr(ui, "create_progress_artifact", fail)
    with ui.progress_artifact("train") as progress:
        progress(1, 10, "loss 1.0")
    assert "not shown in Prefect's UI: no server" in caplog.text


def test_outside_a_run_nothing_is_sent(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("sent without a run")

    for name in ("create_progress_artifact", "create_table_artifact", "create_image_artifact"):
        monkeypatch.setattr(ui, name, refuse)
    store = ArtifactStore(tmp_path)
    with ui.progress_artifact("train") as progress:
        progress(1, 2, "")
    evaluation = _evaluation(store, 1, _metrics(0.5))
    ui.show_metrics(store, evaluation)
    ui.show_cmc(evaluation)


def test_metrics_are_compared_with_the_previous_run(sent, tmp_path):
    store = ArtifactStore(tmp_path)
    _evaluation(store, 0, _metrics(0.9, dataset="others"))
    first = _evaluation(store, 1, _metrics(0.50))
    ui.show_metrics(store, first)
    second = _evaluation(store, 2, _metrics(0.534, test_hash="changed"))
    ui.show_metrics(store, second)
    (_, (rows,), words), (_, (rows_2,), words_2) = sent
    assert rows[0]["mAP"] == "50.0"
    assert words["description"].endswith("percent; the first run of this dataset")
    assert rows_2[0]["mAP"] == "53.4 (+3.4)"
    assert words_2["description"].endswith("since the previous run, without an interval, because its images differ")


def _ranked(store: ArtifactStore, number: int, aps: list[float], dataset_hash: str = "h"):
    """Return an evaluate artifact with one trained row; its queries have these APs and a correct first image."""
    rows = [
        {"model": "trained", "mode": "image", "query_path": f"{at:03}.jpg", "ap": ap, "inp": 0.1, "first_hit": 1}
        for at, ap in enumerate(aps)
    ]

    def produce(folder):
        write_json(folder / "metrics.json", _metrics(sum(aps) / len(aps), test_hash=dataset_hash))
        pq.write_table(pa.Table.from_pylist(rows), folder / "rankings.parquet")

    return make_artifact(store, "evaluate", {"n": number}, produce).ref


def test_the_gain_since_the_previous_run_has_an_interval(sent, tmp_path):
    store = ArtifactStore(tmp_path)
    before = [0.3 + 0.4 * (at % 2) for at in range(40)]
    _ranked(store, 1, before)
    ui.show_metrics(store, _ranked(store, 2, [ap + 0.05 for ap in before]))
    ((_, (rows,), words),) = sent
    assert rows[0]["mAP"] == "55.0 (+5.0 [+5.0, +5.0])"
    assert rows[0]["R1"] == "50.0 (±0.0 [±0.0, ±0.0])"
    assert words["description"].endswith("an interval that contains zero does not show a difference")
    ui.show_metrics(store, _ranked(store, 3, before, dataset_hash="others"))
    assert sent[-1][1][0][0]["mAP"] == "50.0 (−5.0)", "other images are not paired, even if their paths are the same"


def test_captions_are_spread_over_the_dataset(sent, tmp_path):
    store = ArtifactStore(tmp_path)
    columns = {
        "image_path": [f"{number}.jpg" for number in range(100)],
        "caption": ["A man."] * 100,
        "status": ["ok"] * 100,
        "n_tokens": [3] * 100,
    }
    ref = make_artifact(
        store, "caption", {}, lambda folder: pq.write_table(pa.table(columns), folder / "captions.parquet")
    ).ref
    ui.show_captions(ref, count=10)
    ((_, (rows,), words),) = sent
    assert [row["image_path"] for row in rows] == [f"{number}.jpg" for number in range(0, 100, 10)]
    assert words["key"] == "captions"


def test_a_chart_is_a_picture_of_its_own(sent, tmp_path):
    ui.show_cmc(_evaluation(ArtifactStore(tmp_path), 1, _metrics(0.5)))
    ((name, (source,), words),) = sent
    assert name == "create_image_artifact"
    assert words["key"] == "cmc"
    svg = base64.b64decode(source.removeprefix("data:image/svg+xml;base64,")).decode()
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    # Without a page around it, nothing else keeps a curve from being filled black and an axis from being invisible.
    assert all("fill: none" in path.get("style") or "stroke" in path.get("style") for path in root.iter("{*}path"))
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words[-2:] == ["Cumulative matching characteristic", "trained, image R1 50.0 %"]


def test_rankings_frame_right_green_and_wrong_red(tmp_path):
    for name, color in (("q.jpg", "blue"), ("right.jpg", "white"), ("wrong.jpg", "black")):
        Image.new("RGB", (32, 64), color).save(tmp_path / name)
    row = {
        "model": "trained",
        "mode": "image",
        "query_path": "q.jpg",
        "query_pid": 1,
        "ap": 0.5,
        "top_paths": ["right.jpg", "wrong.jpg", "gone.jpg"],
        "top_pids": [1, 2, 1],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rankings.parquet")
    source = ranking_picture(tmp_path / "rankings.parquet", tmp_path, queries=3, top_k=3)
    sheet = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))))
    cell = 48 + 6 + 4
    frames = [sheet.getpixel((4 + column * cell + 1, 50)) for column in range(4)]
    red, green, blue = 0, 1, 2
    assert max(frames[0]) < 100
    assert frames[1][green] > frames[1][red] + 60
    assert frames[2][red] > frames[2][green] + 60
    assert frames[3][green] > frames[3][red] + 60
    assert sheet.getpixel((4 + 20, 50))[blue] > 200


def test_without_rankings_a_picture_is_not_drawn(tmp_path):
    schema = pa.schema([(name, pa.string()) for name in ("model", "mode", "query_path", "query_pid", "ap")])
    table = schema.empty_table().append_column("top_paths", pa.array([], pa.list_(pa.string())))
    pq.write_table(table.append_column("top_pids", pa.array([], pa.list_(pa.int64()))), tmp_path / "r.parquet")
    assert ranking_picture(tmp_path / "r.parquet", tmp_path, queries=3, top_k=3) is None
