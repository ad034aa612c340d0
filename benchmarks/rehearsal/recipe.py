"""The published recipes of one dataset by command line, at their true shapes, for a few steps."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq
from checks.part import Check
from checks.rows import Outcome
from matrix_rate import has_bf16

from data.files import read_json
from rehearsal.material import LLAVA, weight_bytes
from rehearsal.memory import GIB, memory_of_family, peak_of

STEPS: Final = 2
MOST_GIB: Final = 10.0
"""What a batch of 64 may take in float32; in bf16 it takes about half."""
_CAPTION_BATCH: Final = 8


class RecipeRun:
    """The checks of one dataset; the first run of a tree captions its images."""

    def __init__(self, work: Path, dataset: str) -> None:
        self.work, self.dataset = work, dataset

    def checks(self) -> list[Check]:
        """Return the checks."""
        held = 2 * weight_bytes(self.work, LLAVA) / GIB
        return [
            Check(
                name="captions",
                want=f"a caption per image, <= 400 s, < {held:.1f} GiB (the weights twice)",
                work=lambda: self.captions(400, held),
                seconds=0,
            ),
            Check(
                name="CLIP-SCGI",
                want=f"{STEPS} steps, ranked, <= 300 s, <= {MOST_GIB:g} GiB",
                work=lambda: self.method(self.dataset, 300),
                seconds=0,
            ),
            Check(
                name="CLIP-ReID, both stages",
                want=f"{STEPS} steps, ranked, <= 300 s, <= {MOST_GIB:g} GiB",
                work=lambda: self.method(f"{self.dataset}_clip_reid", 300),
                seconds=0,
            ),
        ]

    def captions(self, most_seconds: float, most_gib: float) -> Outcome:
        """Caption every image with free text, as the recipe does, in batches that stay small beside the weights."""
        settings = [f"caption.batch_size={_CAPTION_BATCH}"]
        seconds, peak = self._run(self.dataset, settings, "audit")
        table = pq.read_table(self._artifact("caption", "captions.parquet"))
        written = sum(text is not None for text in table["raw_text"].to_pylist())
        return Outcome(
            got=f"{written} of {len(table)} captions, {seconds:.0f} s, {peak:.2f} GiB",
            passed=written == len(table) and seconds <= most_seconds and peak < most_gib,
            figures={"captions": written, "seconds": seconds, "peak": peak},
        )

    def method(self, recipe: str, most_seconds: float) -> Outcome:
        """Train, evaluate and report."""
        seconds, peak = self._run(recipe, [], "report")
        model = read_json(self._artifact("train", "config.json"))
        scores = read_json(self._artifact("evaluate", "metrics.json"))["results"]
        steps = model["training"]["steps"]
        return Outcome(
            got=f"{steps} steps, {len(scores)} rankings, {seconds:.0f} s, {peak:.2f} GiB",
            passed=steps == STEPS and bool(scores) and seconds <= most_seconds and peak <= MOST_GIB,
            figures={"steps": steps, "seconds": seconds, "peak": peak},
        )

    def _run(self, recipe: str, settings: Sequence[str], until: str) -> tuple[float, float]:
        """Run a recipe; return seconds and peak memory in GiB. Raises RuntimeError if it fails."""
        command = [sys.executable, "-m", "flows.cli.app", "run", recipe, "--until", until, "--home", str(self._home)]
        for setting in (*self._few_steps(), *settings):
            command += ["--set", setting]
        print("$", *command, flush=True)
        started = time.monotonic()
        with (
            subprocess.Popen(command) as process,  # its output goes to the log of the part
            peak_of(lambda: memory_of_family(process.pid), 0.2) as peak,
        ):
            status = process.wait()
        if status:
            raise RuntimeError(f"{recipe} ended with status {status}; see the log of this part")
        return time.monotonic() - started, peak.bytes / GIB

    def _few_steps(self) -> list[str]:
        """Return the settings in which the rehearsal differs from the published run: where, how long, and in bf16.

        In float32, a batch of 64 takes about 9 GB. A processor that emulates bf16 would take many times as long.
        """
        precision = f"train.precision={'bf16' if has_bf16() else 'no'}"
        devices = [f"{stage}.device=cpu" for stage in ("caption", "train", "evaluate")]
        epochs = ["train.schedule.epochs=2", "train.prompts.epochs=2"]
        return [f"data.root={self.work / self.dataset}", precision, *devices, *epochs]

    @property
    def _home(self) -> Path:
        """The artifact root. Both datasets share it, and so the captions of equal images."""
        return self.work / "artifacts"

    def _artifact(self, stage: str, name: str) -> Path:
        """Return a file of the newest artifact of `stage`."""
        found = (self._home / "stages" / stage).glob(f"*/{name}")
        return max(found, key=lambda path: path.stat().st_mtime)
