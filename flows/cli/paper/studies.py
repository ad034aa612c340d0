"""Actions of ``clip-scgi paper ablation`` and ``clip-scgi paper sweep``, which execute runs of the study."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from flows.cli.study import exit_status, run_variants
from flows.paper.ablation import MARKDOWN, PAGE, VARIANTS, ablation, evaluations_of, write_ablation
from flows.paper.sweep import SWEEPS, sweep_note, write_sweep
from flows.preflight.disk import check_output
from flows.recipes import Recipe
from flows.study.plan import StudyConfig
from flows.study.rows import RunRow
from flows.terminal import plain_console


def make_ablation(recipe: Recipe, config: StudyConfig, *, home: Path | None, out: Path, dry_run: bool) -> int:
    """Execute the runs of the ablation that are missing, write its table to `out`, and return the exit status."""
    check_output(out, "--out")

    def write(rows: Sequence[RunRow]) -> None:
        write_ablation(out, ablation(rows, recipe))

    rows = run_variants(
        "paper ablation",
        recipe,
        config,
        home=home,
        write=write,
        dry_run=dry_run,
        wanted=lambda variant: variant.name in VARIANTS,
    )
    if rows is None:
        return 0
    console = plain_console()
    console.print((out / MARKDOWN).read_text(encoding="utf-8"), highlight=False, soft_wrap=True)
    console.print(f"page      {(out / PAGE).resolve()}", highlight=False, soft_wrap=True)
    command = _next_command(rows, home)
    if command:
        console.print(f"top ten   {command}", highlight=False, soft_wrap=True)
    return exit_status(rows)


def _next_command(rows: Sequence[RunRow], home: Path | None) -> str:
    """Return the command that compares the baseline with CLIP-SCGI for the first seed that has both, or ""."""
    first, second = (evaluations_of(rows, variant) for variant in ("baseline", "scgi"))
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return ""
    place = ["--home", str(home)] if home else []
    return shlex.join(["clip-scgi", "paper", "top10", first[shared[0]][:8], second[shared[0]][:8], *place])


def make_sweep(recipe: Recipe, config: StudyConfig, *, home: Path | None, out: Path, dry_run: bool) -> int:
    """Execute the runs of the sweeps that are missing, write the charts to `out`, and return the exit status."""
    check_output(out, "--out")
    written: list[Path] = []

    def write(rows: Sequence[RunRow]) -> None:
        written[:] = write_sweep(out, rows)

    rows = run_variants("paper sweep", recipe, config, home=home, write=write, dry_run=dry_run)
    if rows is None:
        return 0
    console = plain_console()
    console.print(sweep_note(rows), highlight=False, soft_wrap=True)
    for path in written:
        console.print(f"{path.suffix.removeprefix('.'):<9} {path.resolve()}", highlight=False, soft_wrap=True)
    return exit_status(rows)


def sweep_groups(groups: Sequence[str]) -> list[str]:
    """Return the groups of the study that the sweep needs: `groups`, or all of them by default."""
    return list(groups or SWEEPS)
