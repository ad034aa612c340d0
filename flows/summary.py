"""The result of a run of the flow, as plain JSON data: how each stage ended, and its artifact."""

from __future__ import annotations

from typing import Literal

from data.artifacts.store import ArtifactRef
from data.config import Config


class StageRun(Config):
    """How one stage ended."""

    stage: str
    """Name of the stage."""
    status: Literal["ran", "cached"]
    """Whether the artifact was made now or found intact."""
    seconds: float
    """Wall time of the stage, verification included."""
    note: str
    """Short text of what it did: "1 caption generated, 799 reused"."""
    reason: str = ""
    """Why a stage ran: the ingredients that changed since its last artifact, or "first run"."""
    ref: dict[str, str]
    """The artifact (fields of `data.artifacts.store.ArtifactRef`)."""
    images_root: str | None = None
    """For the index stage: the absolute folder that the image paths are relative to."""

    @property
    def artifact(self) -> ArtifactRef:
        """The artifact as a reference."""
        return ArtifactRef(**self.ref)


class RunSummary(Config):
    """How one run of the flow ended."""

    recipe: str
    """Name of the recipe."""
    stages: list[StageRun]
    """The stages in the order in which they ran."""
    no_text_to_image: str = ""
    """Why text to image was not measured, a sentence; empty if it was, or if the run ended before the evaluation."""

    def find(self, name: str) -> StageRun | None:
        """Return the stage `name`, or None if the run ended before it."""
        return next((stage for stage in self.stages if stage.stage == name), None)

    @property
    def captions(self) -> StageRun:
        """The stage that wrote the captions which later stages read: with corrections, if they are in use."""
        return self.find("correct") or self["caption"]

    def __getitem__(self, name: str) -> StageRun:
        """Return the stage `name`; raise KeyError if the run ended before it."""
        found = self.find(name)
        if found is None:
            raise KeyError(name)
        return found

    @property
    def seconds(self) -> float:
        """Total time of the stages in seconds."""
        return sum(stage.seconds for stage in self.stages)
