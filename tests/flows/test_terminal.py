"""Terminal output, on a terminal and in a log file."""

from __future__ import annotations

import io
from contextlib import nullcontext

import pytest
from rich.console import Console

from data.artifacts.store import ArtifactStore
from flows.cli import artifacts as commands_artifacts
from flows.cli import run as commands
from flows.cli.results import print_protocol, results_table
from flows.execution.ui_metrics import Evaluated, metrics_note
from flows.terminal import progress_bar, size, stage_line, waiting
from reid.evaluation.protocol import NO_CAMERAS


def row(model: str, mode: str, value: float) -> dict:
    return {"model": model, "mode": mode} | dict.fromkeys(("mAP", "mINP", "rank1", "rank5", "rank10"), value)


def metrics(*rows: dict, dataset: str = "demo", version: str = "") -> dict:
    protocol = {"dataset": dataset, "version": version, "n_query": 1234, "n_gallery": 56789}
    return {"protocol": protocol, "results": list(rows)}


def shown(renderable, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_results_are_in_percent_with_the_gain_over_untrained():
    rows = [row("untrained", "image", 0.25), row("trained", "image", 0.5), row("trained", "fused", 0.2)]
    lines = [line.split() for line in shown(results_table(metrics(*rows))).splitlines()]
    assert lines[0] == ["demo:", "1,234", "queries,", "56,789", "gallery", "images"]
    assert ["model", "mode", "mAP", "mINP", "R1", "R5", "R10"] in lines
    assert ["untrained", "image", *["25.0"] * 5] in lines
    assert lines[lines.index(["trained", "image", *["50.0"] * 5]) + 1] == ["+25.0"] * 5
    assert lines[lines.index(["trained", "fused", *["20.0"] * 5]) + 1] == ["−5.0"] * 5
    assert lines[-1][-4:] == ["(fused", "against", "image", "mode)"]


def test_unknown_cameras_are_told_in_every_table_of_scores():
    found = metrics(row("trained", "image", 0.5))
    assert NO_CAMERAS not in shown(results_table(found))
    assert NO_CAMERAS not in metrics_note(Evaluated(metrics=found, queries={}), None)
    found["protocol"]["cameras"] = "unknown"
    assert f"56,789 gallery images; {NO_CAMERAS}" in " ".join(shown(results_table(found), 200).split())
    assert NO_CAMERAS in metrics_note(Evaluated(metrics=found, queries={}), None)


def test_a_note_on_a_mode_stands_beside_its_scores():
    found = metrics(row("trained", "image", 0.5), row("trained", "fused", 0.2))
    found["protocol"] |= {"description": "Single query.", "notes": {"fused": "trained otherwise."}}
    console = Console(file=io.StringIO(), width=200)
    print_protocol(console, found["protocol"])
    assert console.file.getvalue() == "Single query.\nFused mode: trained otherwise.\n"
    assert metrics_note(Evaluated(metrics=found, queries={}), None).count("; Fused mode: trained otherwise; ") == 1


def test_without_an_untrained_row_there_is_no_gain():
    text = shown(results_table(metrics(row("trained", "image", 0.5))))
    assert "50.0" in text
    assert "gained" not in text


def test_the_dataset_version_and_the_spread_over_drawn_galleries_are_shown():
    drawn = row("trained", "image", 0.5) | {"galleries": {"std": {"mAP": 0.012, "rank1": 0.034}}}
    text = shown(results_table(metrics(drawn, dataset="vehicleid", version="test 800")))
    assert text.startswith("vehicleid (test 800): 1,234 queries")
    assert "50.0 ± 1.2" in text
    assert "50.0 ± 3.4" in text


def test_a_name_cannot_style_the_table():
    assert "[red]x[/]" in shown(results_table(metrics(row("trained", "image", 0.5), dataset="[red]x[/]")))


@pytest.mark.parametrize("width", [64, 80, 200])
def test_the_table_fits_a_terminal(width):
    rows = [row("untrained", "image", 1.0), row("trained", "image", 1.0), row("trained", "fused", 0.1)]
    text = shown(results_table(metrics(*rows)), width)
    assert text.count("−90.0") == 5
    assert "…" not in text


def test_stage_lines_align_and_do_not_interpret_markup():
    first = stage_line("index", "cached", 0.12, "800 images").plain
    second = stage_line("caption", "ran", 245.0, "[bold]800[/] captions").plain
    assert first == "✓ index     cached      0.1 s  800 images"
    assert second == "✓ caption   ran    4 min 05 s  [bold]800[/] captions"
    why = "images changed: 1 path renamed"
    assert stage_line("caption", "ran", 1.0, "0 generated", why).plain.endswith(f"  0 generated; why: {why}")
    assert stage_line("train", "ran", 1.0, "", "config.[b]x 1 -> 2").plain.endswith("  why: config.[b]x 1 -> 2")


def test_a_log_file_gets_a_plain_line_at_most_every_few_seconds():
    clock, console = Clock(), Console(file=io.StringIO(), force_terminal=False, width=40)
    with progress_bar("caption", console, interval=5.0, clock=clock) as progress:
        for done in range(0, 2001, 50):
            progress(done, 2000, "loss [1.5]")
            clock.now += 0.5
    assert console.file.getvalue().splitlines() == [
        "caption: 500/2,000 (25 %), about 15.0 s left, loss [1.5]",
        "caption: 1,000/2,000 (50 %), about 10.0 s left, loss [1.5]",
        "caption: 1,500/2,000 (75 %), about 5.0 s left, loss [1.5]",
        "caption: 2,000/2,000 (100 %), loss [1.5]",
    ]


def test_work_of_an_earlier_run_does_not_count_as_speed():
    clock, console = Clock(), Console(file=io.StringIO(), force_terminal=False, width=40)
    with progress_bar("caption", console, clock=clock) as progress:
        progress(900, 1000, "")
        clock.now += 10
        progress(910, 1000, "")
    assert console.file.getvalue() == "caption: 910/1,000 (91 %), about 1 min 30 s left\n"


def test_an_unknown_total_does_not_divide_by_zero():
    clock, console = Clock(), Console(file=io.StringIO(), force_terminal=False)
    with progress_bar("index", console, clock=clock) as progress:
        clock.now += 10
        progress(0, 0, "")
    assert console.file.getvalue() == "index: 0/0\n"


def test_a_terminal_gets_a_bar_that_disappears():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with progress_bar("train", console) as progress:
        progress(3, 10, "loss [1.42]")
    text = console.file.getvalue()
    assert "train" in text
    assert "3/10" in text
    assert "loss [1.42]" in text
    assert text.rstrip().endswith(("\x1b[2K", "\x1b[?25h"))


def test_two_stages_may_show_a_bar_at_once():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with progress_bar("train", console) as first, progress_bar("caption", console) as second:
        first(1, 2, "")
        second(1, 2, "")
    text = console.file.getvalue()
    assert "train" in text
    assert "1/2" in text
    assert "caption" in text


def test_an_error_inside_passes_through():
    with pytest.raises(ValueError, match="inside"), progress_bar("train", Console(file=io.StringIO())):
        raise ValueError("inside")


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e15, "2.5 PB")]
)
def test_sizes_are_in_units_that_fit(n_bytes, text):
    assert size(n_bytes) == text


ODD = "[/red] [bold]x :car: \\[y]"


def test_a_path_with_brackets_and_colons_is_printed_as_it_is(tmp_path, capsys, monkeypatch):
    store = ArtifactStore(tmp_path / ODD)
    commands_artifacts.list_artifacts(store.root)
    assert f"in {store.root}\n" in capsys.readouterr().out
    monkeypatch.setattr(commands, "flow_of", lambda *_: nullcontext())
    with commands.pipeline("demo", [], store.root, "index"):
        assert f"clip-scgi demo: artifacts in {store.root}\n" in capsys.readouterr().out
    with progress_bar("index", interval=0, clock=iter(range(9)).__next__) as progress:
        progress(1, 2, ODD)
    assert capsys.readouterr().err.rstrip().endswith(f", {ODD}")


@pytest.mark.parametrize("on_terminal", [False, True])
def test_waiting_is_announced_at_its_start(on_terminal):
    console = Console(file=io.StringIO(), force_terminal=on_terminal, width=100)
    with waiting("starting [a server]", console):
        during = console.file.getvalue()
    assert "starting [a server]" in during
    after = console.file.getvalue().removeprefix(during)
    assert "starting" not in (after if not on_terminal else after.rpartition("\x1b[2K")[2]), "a spinner leaves nothing"
    if not on_terminal:
        assert during == "starting [a server]\n"
