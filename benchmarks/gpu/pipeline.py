"""The demo end to end on the device, and a training in two processes, as the command line runs them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from checks.part import Check
from checks.rows import NotRun, Outcome
from matrix_rate import DEVICE, ON_GPU

from data.artifacts.stages import StageName
from data.device import cuda_devices
from data.files import read_json
from flows.execution.server import prefect_server
from flows.recipes import build_recipe
from flows.summary import RunSummary
from gpu.sizes import Sizes
from gpu.training import losses_of

APART = 0.01
"""Largest difference of a loss between one process and two."""


class Pipeline:
    """The checks of whole runs."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def checks(self) -> list[Check]:
        """Return the checks."""
        return [
            Check(
                name="two processes",
                want=f"losses within {APART:.0%} of one process",
                work=self.two_processes,
                seconds=30,
            ),
            Check(
                name="demo, twice",
                want="six stages" + (", better than untrained" if self.sizes.judged else "") + "; then six cached",
                work=self.demo,
                seconds=60,
            ),
        ]

    @cached_property
    def home(self) -> Path:
        """An artifact root that is deleted at the end of the process."""
        self._held = TemporaryDirectory()
        return Path(self._held.name)

    def two_processes(self) -> Outcome:
        """Train once in this process and once in two, each with a GPU, and compare the loss of every step."""
        if ON_GPU and (count := _devices()) < 2:
            raise NotRun(f"needs two GPUs; this machine has {count}")
        with prefect_server(self.home):
            one, two = (self._trained(f"scale.train_processes={count}") for count in (1, 2))
        worst = max(abs(a / b - 1) for a, b in zip(two, one, strict=True))
        return Outcome(got=f"at most {worst:.3%} apart", passed=worst <= APART, figures={"difference": worst})

    def demo(self) -> Outcome:
        """Run the demo, read its scores, and run it again: everything must be found."""
        with prefect_server(self.home):
            first, second = (self._run(self.sizes.demo, self.home / "demo") for _ in range(2))
        scores = _scores(first)
        states = [[stage.status for stage in summary.stages] for summary in (first, second)]
        better = scores["trained image"] > scores["untrained image"] or not self.sizes.judged
        seconds = sum(stage.seconds for stage in first.stages)
        listed = ", ".join(f"{name} {value:.1%}" for name, value in scores.items())
        return Outcome(
            got=f"{listed} mAP; {seconds:.0f} s; then {states[1].count('cached')} cached",
            passed=better and states == [["ran"] * 6, ["cached"] * 6],
            figures={**scores, "seconds": seconds},
        )

    def _trained(self, setting: str) -> list[float]:
        settings = [*self.sizes.together, "train.log_every=1", setting]
        summary = self._run(settings, self.home / setting, "train")
        return losses_of(summary["train"].artifact.folder)

    def _run(self, settings: list[str] | tuple[str, ...], home: Path, until: StageName = "report") -> RunSummary:
        """Run the demo's recipe on the device; a Prefect server must run."""
        kind = DEVICE.partition(":")[0]
        devices = [f"{stage}.device={kind}" for stage in ("caption", "train", "evaluate")]
        from flows.pipeline import caption_and_train  # Prefect reads its settings when it is first imported

        done = caption_and_train(build_recipe("demo", [*devices, *settings]), home=str(home), until=until)
        return RunSummary.model_validate(done)


def _devices() -> int:
    import torch

    return cuda_devices(torch.cuda)


def _scores(summary: RunSummary) -> dict[str, float]:
    """Return the mAP of every model and mode."""
    rows = read_json(summary["evaluate"].artifact.folder / "metrics.json")["results"]
    return {f"{row['model']} {row['mode']}": float(row["mAP"]) for row in rows}
