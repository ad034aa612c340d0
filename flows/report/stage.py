"""The report stage: one self-contained HTML page about one run.

The page does not load external resources or run scripts: styles, charts and thumbnails are inline, a content security
policy forbids anything else, and all text from captions, paths and configs is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from data.artifacts.fingerprint import digest_file
from data.artifacts.store import ArtifactRef, Produced
from data.config import Config
from data.device import CPU
from data.stages.images import IndexedImages
from data.stages.stage import Ingredients, RunContext, Stage

STAGE_VERSION: Final = 3
TEMPLATES: Final = Path(__file__).parents[1] / "templates"
_PATH_KEYS: Final = frozenset({"root", "home"})


class ReportConfig(Config):
    """What the report shows, and how much of it."""

    seed: int = 0
    """Seed of the random choices: captions shown, and the order of queries of equal average precision."""
    mode: Literal["image", "fused"] = "image"
    """Inference mode whose scores and rankings the page shows first; the other mode if it was not evaluated."""
    queries_each: int = Field(default=4, ge=0, le=50)
    """Query rows shown per kind: lowest, median and highest average precision, and largest drop from the untrained
    model."""
    top_k: int = Field(default=10, ge=1, le=50)
    """Gallery crops shown in each query row."""
    relevance: bool = True
    """Show what makes each query and its first gallery image similar (`reid.relevance`). This loads the model."""
    cmc_ranks: int = Field(default=20, ge=2, le=50)
    """Ranks shown in the CMC curve."""
    captions: int = Field(default=24, ge=0, le=500)
    """Captions shown, spread over identities."""
    failed_captions: int = Field(default=6, ge=0, le=500)
    """Captions shown that could not be parsed, were truncated or lack an image."""
    identities: int = Field(default=6, ge=0, le=100)
    """Identities shown, those whose captions agree least."""
    identity_images: int = Field(default=8, ge=1, le=50)
    """Crops shown per such identity."""
    thumbnail_height: int = Field(default=144, ge=32, le=512)
    """Greatest height of a thumbnail in pixels; smaller images are not enlarged."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that can change the page, except `relevance`, which `ReportStage.ingredients` adds.

        Recipes are known by this digest, so a new setting does not change it.
        """
        return {name: value for name, value in super().identity().items() if name != "relevance"}


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """The inputs of a report besides the images.

    captions, audit: None if the method does not read captions. recipe: the whole resolved config as plain JSON. The
    page shows it, and it is part of the fingerprint, except for paths on this machine (keys ``root`` and ``home``).
    """

    captions: ArtifactRef | None
    audit: ArtifactRef | None
    model: ArtifactRef
    evaluation: ArtifactRef
    recipe: Mapping[str, Any]

    def artifacts(self, images: IndexedImages) -> dict[str, ArtifactRef]:
        """Return the artifacts by role, in the order of the DAG."""
        roles = {
            "images": images.ref,
            "captions": self.captions,
            "audit": self.audit,
            "model": self.model,
            "evaluation": self.evaluation,
        }
        return {role: ref for role, ref in roles.items() if ref is not None}


def without_places(value: Any) -> Any:
    """Return plain JSON data without the keys that hold paths on this machine, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items() if key not in _PATH_KEYS}
    if isinstance(value, list | tuple):
        return [without_places(item) for item in value]
    return value


@dataclass(frozen=True, kw_only=True)
class ReportStage(Stage):
    """Write report.html.

    device: where relevance is computed, "auto", "cpu", "cuda" or "cuda:N".

    A page with a placeholder for an unreadable image is incomplete: it can be used, but it is made again next time.
    """

    name: ClassVar[str] = "report"
    inputs: ReportInputs
    config: ReportConfig
    device: str = CPU

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return what the page depends on, including the fingerprints, which the page shows."""
        artifacts = self.inputs.artifacts(run.images)
        return {
            "inputs": {
                role: {"fingerprint": ref.fingerprint, "content": ref.content} for role, ref in artifacts.items()
            },
            "recipe": without_places(self.inputs.recipe),
            "config": self.config.identity(),
            "relevance": self.config.relevance,
            "templates": {path.name: digest_file(path) for path in sorted(TEMPLATES.iterdir()) if path.is_file()},
            "version": STAGE_VERSION,
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write the page."""
        from flows.report.page import write_page  # a cached report loads neither Pillow nor Jinja2

        problems = write_page(folder / "report.html", run, inputs=self.inputs, config=self.config, device=self.device)
        return Produced(complete=not problems)
