"""What a run of the flow tells its caller: one line a stage, and where the results lie. Plain JSON data."""

from __future__ import annotations

from typing import Literal

from data.artifacts.store import ArtifactRef
from data.config import Config


class StageRun(Config):
    """How one stage ended."""

    stage: str
    """Name of the stage."""
    status: Literal["ran", "cached"]
    """Whether the artefact was made now or found intact."""
    seconds: float
    """Wall time of the stage, verification included."""
    note: str
    """What it did, in a few words: "1 caption generated, 799 reused"."""
    reason: str = ""
    """Of a stage that ran, why: the ingredients that changed since the last artifact of its kind, or "first run"."""
    ref: dict[str, str]
    """The artefact (fields of `data.artifacts.store.ArtifactRef`)."""
    images_root: str | None = None
    """Of the index stage: the absolute folder that the image paths are relative to."""

    @property
    def artifact(self) -> ArtifactRef:
        """The artefact as a reference."""
        return ArtifactRef(**self.ref)


class RunSummary(Config):
    """How one run of the flow ended."""

    recipe: str
    """Name of the recipe."""
    stages: list[StageRun]
    """The stages in the order in which they ran."""

    def find(self, name: str) -> StageRun | None:
        """Return the stage `name`, or None when the run ended before it."""
        return next((stage for stage in self.stages if stage.stage == name), None)

    def __getitem__(self, name: str) -> StageRun:
        """Return the stage `name`; KeyError when the run ended before it."""
        found = self.find(name)
        if found is None:
            raise KeyError(name)
        return found

    @property
    def seconds(self) -> float:
        """Seconds that the stages took together."""
        return sum(stage.seconds for stage in self.stages)
