"""``clip-scgi compare``: its table, JSON and page, and the commands of its section in docs/evaluation.md."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.artifacts.store import ArtifactStore
from flows.cli.app import main
from tests.helpers.evaluations import image_rows, rank, write_evaluation
from tests.helpers.page_text import HOSTILE, Page, page_lines
from tests.helpers.places import REPO
from tests.helpers.stages import make_artifact

SECTION = re.search(r"^## Compare runs\n(.*?)(?=^## |\Z)", (REPO / "docs/evaluation.md").read_text(), re.M | re.S)


def compared(drawn, *words) -> int:
    return main(["compare", *words, "--home", str(drawn.home)])


def aps_of(folder: Path, mode: str = "image") -> dict[str, float]:
    rows = pq.read_table(folder / "rankings.parquet").to_pylist()
    return {row["query_path"]: row["ap"] for row in rows if row["mode"] == mode}


# The terminal -----------------------------------------------------------------------------------------


def test_the_table_fits_eighty_columns(drawn, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert compared(drawn, "benchmark", "demo", "pku_reid") == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    words = " ".join(printed.split())
    assert (
        f"A baseline: evaluate/{drawn.benchmark.name[:8]} on synthetic; trained, image mode; recipe benchmark; 20"
        in words
    )
    assert "B against A: 27 queries of 9 identities in both, matched by path" in words
    assert "95 % interval: paired bootstrap over identities, each with all its queries" in words
    assert "Each of the 2 comparisons has its own intervals, which are not corrected" in words
    before, after = aps_of(drawn.benchmark), aps_of(drawn.demo)
    gains = {path: after[path] - before[path] for path in before}
    line = next(line for line in printed.splitlines() if line.split()[:1] == ["mAP"])
    counts = [sum(gain > 0 for gain in gains.values()), sum(gain < 0 for gain in gains.values())]
    assert line.split()[-3:] == [str(count) for count in [*counts, len(gains) - sum(counts)]]
    most = max(gains, key=gains.get)
    shown = re.search(r"most won by B\n.*?─\s*\n\s*(\S+)", printed, re.S)
    assert shown.group(1) == most


def test_long_names_are_folded_and_not_cut(drawn, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    images = [row | {"path": f"{'deep/' * 20}{row['path']}"} for row in image_rows()]
    store = ArtifactStore(tmp_path)
    refs = [write_evaluation(store, images, rank(images, noise=1, seed=seed)) for seed in (1, 2)]
    assert main(["compare", *(str(ref.folder) for ref in refs), "--home", str(tmp_path), "--top", "1"]) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert f"{'deep/' * 20}query" in re.sub(r"\s+|\d+\.\d|[+−→]|(?<=\s)\d+", "", printed)


def test_json_has_every_pair_and_nothing_else_on_standard_output(drawn, capsys, tmp_path):
    page = tmp_path / "new" / "page.html"
    assert compared(drawn, "benchmark", str(drawn.demo), "--json", "--page", str(page)) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert str(page) in captured.err
    assert found["baseline"]["fingerprint"] == drawn.benchmark.name
    (run,) = found["runs"]
    assert run["run"] | {"created": ""} == {
        "name": str(drawn.demo),
        "fingerprint": drawn.demo.name,
        "folder": str(drawn.demo),
        "recipe": "demo",
        "dataset": "synthetic",
        "created": "",
        "model": "trained",
        "mode": "image",
    }
    before, after = aps_of(drawn.benchmark), aps_of(drawn.demo)
    assert {pair["path"]: (pair["baseline_ap"], pair["ap"]) for pair in run["pairs"]} == {
        path: (before[path], after[path]) for path in before
    }
    metric = run["metrics"]["mAP"]
    assert metric["difference"] == pytest.approx(metric["run"] - metric["baseline"])
    assert metric["won"] + metric["lost"] + metric["tied"] == run["queries"] == len(run["pairs"]) == 27


def test_modes_of_one_run_are_compared(drawn, capsys):
    assert compared(drawn, "demo", "demo", "--mode", "image", "--mode", "fused", "--json") == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["run"]["mode"], run["notices"]) == ("fused", [])
    gains = [aps_of(drawn.demo, "fused")[path] - ap for path, ap in aps_of(drawn.demo).items()]
    assert run["metrics"]["mAP"]["difference"] == pytest.approx(100 * sum(gains) / len(gains))


def test_a_bootstrap_over_queries_says_what_it_ignores(drawn, capsys):
    intervals = []
    for unit in ("identities", "queries"):
        assert compared(drawn, "benchmark", "demo", "--resample", unit, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        intervals.append(found["runs"][0]["metrics"]["mAP"]["interval"])
    assert "as if they were independent" in found["interval"]
    assert intervals[0] != intervals[1]


def test_left_out_queries_are_named(drawn, capsys):
    gone = sorted(row["path"] for row in drawn.images if row["split"] == "query")[:5]
    for number, text in ((1, f"! 1 query only in A, left out: {gone[0]}"), (5, f"{gone[2]} and 2 more, which --json")):
        fewer = [row for row in drawn.images if row["path"] not in gone[:number]]
        ref = write_evaluation(drawn.store, fewer, rank(fewer, noise=1, seed=9))
        assert compared(drawn, "demo", ref.fingerprint) == 0
        assert text in " ".join(capsys.readouterr().out.split())


def test_models_trained_elsewhere_and_missing_cameras_are_named(drawn, capsys):
    about = {"dataset": "here", "cameras": "unknown"}
    rows = [rank(drawn.images, noise=1, seed=seed) for seed in (11, 12)]
    names = [
        write_evaluation(drawn.store, drawn.images, own, **about, **trained).fingerprint
        for own, trained in zip(rows, ({}, {"trained_on": "elsewhere"}), strict=True)
    ]
    assert compared(drawn, *names) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert f"evaluate/{names[1][:8]} on elsewhere -> here; trained" in words
    assert words.count("! cameras unknown: evaluated without the camera rule") == 1


def test_a_note_on_the_compared_mode_is_told(drawn, capsys):
    for mode, count in (("image", 1), ("fused", 0)):
        ref = write_evaluation(drawn.store, drawn.images, rank(drawn.images, noise=1, seed=13), notes={mode: "so."})
        assert compared(drawn, "demo", ref.fingerprint) == 0
        assert " ".join(capsys.readouterr().out.split()).count("mode: so.") == count


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo"], "give two or more evaluations"),
        (["demo", "nobody"], "'nobody' does not name an evaluation"),
        (["demo", "benchmark", "--mode", "joint"], "does not have the row trained, joint mode"),
        (["demo", "benchmark", "--page", "page.pdf"], "must end in .html"),
    ],
)
def test_what_cannot_work_is_one_message(drawn, words, message, capsys):
    assert compared(drawn, *words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_settings_that_differ_are_listed(tmp_path, capsys):
    """The settings come from the config.json of the train artifacts and from the ingredients of the evaluations."""
    from reid.config.evaluate import EvaluateConfig
    from reid.config.train import TrainConfig

    store, images = ArtifactStore(tmp_path), image_rows()
    names = []
    for seed, flip in ((0, False), (5, True)):

        def model(folder, seed=seed):
            (folder / "model.safetensors").write_bytes(bytes([seed]))
            config = TrainConfig(seed=seed, device="cpu" if seed else "auto").model_dump(mode="json")
            provenance = {"dataset_hash": "5f" * 16, "captions": f"{seed}" * 32}
            (folder / "config.json").write_text(json.dumps({"config": config, "provenance": provenance}))

        trained = make_artifact(store, "train", {"seed": seed}, model).ref
        ingredients = {
            "model": trained.digests_of("model.safetensors"),
            "config": EvaluateConfig(flip=flip, batch_size=8 + seed).identity(),
        }
        ref = write_evaluation(store, images, rank(images, noise=1, seed=seed), ingredients=ingredients)
        names.append(ref.fingerprint)
    assert main(["compare", *names, "--home", str(tmp_path), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["settings"] == [
        {"key": "train.seed", "baseline": "0", "run": "5"},
        {"key": "training captions", "baseline": "00000000", "run": "55555555"},
        {"key": "evaluate.flip", "baseline": "false", "run": "true"},
    ]
    assert main(["compare", *names, "--home", str(tmp_path)]) == 0
    assert "settings: train.seed 0 → 5, training captions" in capsys.readouterr().out


def test_corrected_captions_are_counted(tmp_path, capsys):
    """Corrections of test images train nothing, so they do not count."""
    from reid.config.train import TrainConfig

    store, images, names = ArtifactStore(tmp_path), image_rows(), []
    same = {"pid": 1, "camid": 1}
    plain = [
        {"image_sha256": f"{number}" * 64, "caption": "a man", "split": "query" if number == 3 else "train"} | same
        for number in range(4)
    ]
    own = [row | {"source": "model"} for row in plain]
    for number in (1, 2, 3):
        own[number] |= {"caption": "a woman", "source": "human"}
    for stage, rows in (("caption", plain), ("correct", own)):

        def captions(folder, rows=rows):
            pq.write_table(pa.Table.from_pylist(rows), folder / "captions.parquet")

        made = make_artifact(store, stage, {}, captions).ref

        def model(folder, stage=stage, made=made):
            (folder / "model.safetensors").write_bytes(stage.encode())
            described = {"config": TrainConfig().model_dump(mode="json"), "provenance": {"captions": made.fingerprint}}
            (folder / "config.json").write_text(json.dumps(described))

        trained = make_artifact(store, "train", {"captions": stage}, model).ref
        ingredients = {"model": trained.digests_of("model.safetensors")}
        ref = write_evaluation(store, images, rank(images, noise=1, seed=len(names)), ingredients=ingredients)
        names += [(ref.fingerprint, made.fingerprint[:8])]
    (first, old), (second, new) = names
    assert main(["compare", first, second, "--home", str(tmp_path)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert f"settings: training captions {old} → {new} (2 captions corrected)" in words


# The page ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def html(drawn, module_folder) -> str:
    path = module_folder("page") / "compare.html"
    assert compared(drawn, "benchmark", "demo", "pku_reid", "--page", str(path), "--top", "2") == 0
    return path.read_text(encoding="utf-8")


def test_the_page_is_one_file_that_loads_and_runs_nothing(html):
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert page.open == []
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    sources = [attrs["src"] for _, attrs in page.elements if "src" in attrs]
    assert len(sources) == 2 * 4 * (1 + 2 * 10)
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?://", html)


def test_the_page_shows_both_rankings_of_each_query(drawn, html):
    page = Page(html)
    assert len(page.classed("query")) == 8
    assert len(page.classed("side")) == 16
    words = page.words
    assert "B against A" in words
    assert "C against A" in words
    before, after = aps_of(drawn.benchmark), aps_of(drawn.demo)
    most = max(before, key=lambda path: after[path] - before[path])
    text = "\n".join(page_lines(html))
    start = text.index(most)
    sides = [f"A AP {100 * before[most]:.1f} %", f"B AP {100 * after[most]:.1f} %"]
    places = [text.index(side.split(" ", 1)[1], start) for side in sides]
    assert places == sorted(places)
    rows = pq.read_table(drawn.demo / "rankings.parquet").to_pylist()
    row = next(row for row in rows if (row["query_path"], row["mode"]) == (most, "image"))
    titles = [attrs.get("title") for tag, attrs in page.elements if tag == "img"]
    at = titles.index(most)
    assert titles[at + 11 : at + 21] == row["top_paths"][:10]


def test_missing_and_changed_images_say_so(drawn, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(drawn.root, copy)
    page = tmp_path / "page.html"
    words = ["benchmark", "demo", "--page", str(page), "--top", "3", "--images", str(copy)]
    assert compared(drawn, *words) == 0
    assert 'class="missing"' not in page.read_text()
    found = re.findall(r'<img [^>]*alt="query[^>]*title="([^"]*)"', page.read_text())
    (copy / found[0]).unlink()
    Image.new("RGB", (64, 128)).save(copy / found[1])
    assert compared(drawn, *words) == 0
    text = page.read_text()
    assert "image missing" in text
    assert "image changed" in text
    assert compared(drawn, *words[:-1], str(tmp_path / "nowhere")) == 0
    text = page.read_text()
    assert "data:image" not in text
    assert text.count("image missing") > 40


def test_images_that_cannot_be_found_are_explained(drawn, tmp_path):
    home, page = tmp_path / "home", tmp_path / "page.html"
    shutil.copytree(drawn.home, home)
    (home / "digests.sqlite").unlink()
    runs = ["benchmark", "demo", "--home", str(home), "--page", str(page)]
    assert main(["compare", *runs]) == 0
    assert "are not shown: their folder is unknown; name it with --images FOLDER" in Page(page.read_text()).words
    assert main(["compare", *runs, "--images", str(drawn.root)]) == 0
    assert "not shown" not in page.read_text()
    shutil.rmtree(home / "stages" / "index")
    assert main(["compare", *runs]) == 0
    words = Page(page.read_text()).words
    assert "are not shown: their index artifact is not in the artifact root" in words
    assert "image not found" in words


def test_hostile_names_are_text(tmp_path):
    store, page = ArtifactStore(tmp_path / "home"), tmp_path / "page.html"
    images = [row | {"path": f"{HOSTILE}/{row['path']}"} for row in image_rows()]
    refs = [
        write_evaluation(store, images, rank(images, noise=1, seed=seed), recipe=HOSTILE, dataset=HOSTILE,
                         description=f"{HOSTILE}{seed}.")
        for seed in (1, 2)
    ]  # fmt: skip
    assert main(["compare", *(ref.fingerprint for ref in refs), "--home", str(store.root), "--page", str(page)]) == 0
    html = page.read_text()
    assert "<script" not in html
    parsed = Page(html)
    assert parsed.open == []
    assert not [tag for tag, attrs in parsed.elements if tag == "script" or "onerror" in attrs]
    assert HOSTILE in "".join(parsed.text)


def test_the_same_run_has_a_page_without_queries(drawn, tmp_path):
    page = tmp_path / "page.html"
    assert compared(drawn, "demo", "demo", "--page", str(page)) == 0
    words = Page(page.read_text()).words
    assert "the run is the baseline itself" in words
    assert words.count("no query") == 2
    assert "data:image" not in page.read_text()


# Help and documentation -------------------------------------------------------------------------------


def test_help_loads_no_model_library():
    code = (
        "import sys; from flows.cli.app import main; assert main(['compare', '--help']) == 0;"
        "assert not {'torch', 'prefect', 'PIL', 'pyarrow', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "RUN..." in done.stdout


def commands() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", SECTION.group(1), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line]


def test_the_section_has_commands():
    assert len(commands()) >= 3


@pytest.mark.parametrize("command", commands())
def test_the_commands_of_the_documentation_work(drawn, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    assert words[:2] == ["clip-scgi", "compare"]
    words = [drawn.benchmark.name[:8] if word == "FINGERPRINT" else word for word in words[2:]]
    assert compared(drawn, *words) == 0
    assert "mAP" in capsys.readouterr().out
    for at, word in enumerate(words):
        if word == "--page":
            assert (tmp_path / words[at + 1]).exists()
