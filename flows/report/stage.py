"""The report stage: one self-contained HTML page about one run, for people.

Nothing in the page comes from outside it and nothing of it is a program: styles, drawings and thumbnails are inline,
a content security policy forbids the rest, and every text from captions, paths and configs is escaped.
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
from data.stages.images import IndexedImages
from data.stages.stage import Ingredients, RunContext, Stage

STAGE_VERSION: Final = 2
TEMPLATES: Final = Path(__file__).parents[1] / "templates"
_PATH_KEYS: Final = frozenset({"root", "home"})


class ReportConfig(Config):
    """What the page shows, and how much of it."""

    seed: int = 0
    """Seed of the random choices: captions shown, and the order of queries of equal average precision."""
    mode: Literal["image", "fused"] = "image"
    """Inference mode whose figures lead the page and whose rankings are shown; the other if it was not evaluated."""
    queries_each: int = Field(default=4, ge=0, le=50)
    """Query rows shown of each kind: lowest, median and highest average precision, and those that fell most against
    the untrained model."""
    top_k: int = Field(default=10, ge=1, le=50)
    """Gallery crops shown in each query row."""
    cmc_ranks: int = Field(default=20, ge=2, le=50)
    """Ranks drawn in the CMC curve."""
    captions: int = Field(default=24, ge=0, le=500)
    """Captions shown, spread over identities."""
    failed_captions: int = Field(default=6, ge=0, le=500)
    """Captions shown that could not be parsed, were cut off or have no image."""
    identities: int = Field(default=6, ge=0, le=100)
    """Identities shown whose captions agree least."""
    identity_images: int = Field(default=8, ge=1, le=50)
    """Crops shown of each such identity."""
    thumbnail_height: int = Field(default=144, ge=32, le=512)
    """Greatest height of a thumbnail in pixels; smaller images are not enlarged."""


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """What a report shows besides the images.

    captions, audit: None where the method reads no captions.
    recipe: the whole resolved config as plain JSON. It is shown and it counts for the fingerprint, except for the
    places on this machine in it (keys named ``root`` or ``home``).
    """

    captions: ArtifactRef | None
    audit: ArtifactRef | None
    model: ArtifactRef
    evaluation: ArtifactRef
    recipe: Mapping[str, Any]

    def artifacts(self, images: IndexedImages) -> dict[str, ArtifactRef]:
        """Return the artifacts by their role, in the order of the DAG."""
        roles = {
            "images": images.ref,
            "captions": self.captions,
            "audit": self.audit,
            "model": self.model,
            "evaluation": self.evaluation,
        }
        return {role: ref for role, ref in roles.items() if ref is not None}


def without_places(value: Any) -> Any:
    """Return plain JSON data without the keys that say where things lie on this machine, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items() if key not in _PATH_KEYS}
    if isinstance(value, list | tuple):
        return [without_places(item) for item in value]
    return value


@dataclass(frozen=True, kw_only=True)
class ReportStage(Stage):
    """Write report.html.

    A page with a placeholder for an image that could not be read counts as incomplete: it is handed on, and made again
    next time.
    """

    name: ClassVar[str] = "report"
    inputs: ReportInputs
    config: ReportConfig

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return what the page depends on; the fingerprints too, because the page shows them."""
        artifacts = self.inputs.artifacts(run.images)
        return {
            "inputs": {
                role: {"fingerprint": ref.fingerprint, "content": ref.content} for role, ref in artifacts.items()
            },
            "recipe": without_places(self.inputs.recipe),
            "config": self.config.identity(),
            "templates": {path.name: digest_file(path) for path in sorted(TEMPLATES.iterdir()) if path.is_file()},
            "version": STAGE_VERSION,
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write the page."""
        from flows.report.page import write_page  # a cached report needs neither Pillow nor jinja2

        problems = write_page(folder / "report.html", run, inputs=self.inputs, config=self.config)
        return Produced(complete=not problems)
