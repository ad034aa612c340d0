"""Jobs: work that any number of workers share, as plain data that every worker can be given.

A worker claims pieces of the job in a folder that all workers see, and returns when nothing is left, also of what other
workers had claimed when they ended. So workers may come and go; the stage collects the pieces afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from captioning.config import CaptionConfig
from captioning.stage.stage import caption_part
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.progress import ProgressFn
from data.sources.address import is_remote
from data.sources.places import file_of
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from reid.config.evaluate import EvaluateConfig
from reid.config.train import TrainConfig
from reid.evaluation.features import FeatureStage


class WorkerJob(BaseModel, ABC):
    """A job. home: the artifact root, absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    setting: ClassVar[str]
    """Full key of the setting with the device, for messages."""
    home: str

    @property
    @abstractmethod
    def device(self) -> str:
        """The device setting: auto, cpu, cuda or cuda:N."""

    @abstractmethod
    def work(self, progress: ProgressFn, device: str) -> int:
        """Do what no other worker does, on `device`, until nothing is left; return the number of images done here."""

    @abstractmethod
    def needed(self) -> list[str]:
        """Return files that every machine must see, absolute: an image, and files of the model."""


class _IndexedJob(WorkerJob, ABC):
    """A job about the images of an index. images: fields of `IndexedImages`."""

    images: dict[str, Any]

    def context(self, progress: ProgressFn) -> RunContext:
        """Return the run that the job is part of."""
        indexed = IndexedImages.from_json(self.images)
        return RunContext(store=ArtifactStore(Path(self.home)), progress=progress, indexed=indexed)

    def needed(self) -> list[str]:
        """Return the first image, unless the images lie in an object store."""
        indexed = IndexedImages.from_json(self.images)
        if is_remote(indexed.root):
            return []
        return [str(file_of(indexed.root / path.as_py())) for path in indexed.rows("path")["path"][:1]]


class CaptionJob(_IndexedJob):
    """Caption the images that have no caption by the captioner of `config`."""

    kind: Literal["caption"] = "caption"
    setting: ClassVar[str] = "caption.device"
    config: CaptionConfig

    @property
    def device(self) -> str:
        """The device of the captioner; the CPU if a server captions."""
        return self.config.local_device

    def work(self, progress: ProgressFn, device: str) -> int:
        """Caption until every image of the dataset has a caption or has failed."""
        config = self.config.model_copy(update={"device": device})
        return caption_part(self.context(progress), config, patient=True).generated

    def needed(self) -> list[str]:
        """Return an image, and the config.json of a model that is a folder."""
        model = Path(self.config.model).expanduser().absolute() / "config.json"
        return [*super().needed(), *([str(model)] if model.is_file() else [])]


class FeatureJob(_IndexedJob):
    """Encode the test images with a model, in parts in the folder `scratch`. The model is trained or only a config."""

    kind: Literal["features"] = "features"
    setting: ClassVar[str] = "evaluate.device"
    scratch: str
    trained: dict[str, str] | None
    untrained: TrainConfig | None
    both: bool
    """Also encode with a trained model as it was before training."""
    config: EvaluateConfig

    @classmethod
    def of(cls, run: RunContext, stage: FeatureStage, scratch: Path) -> FeatureJob:
        """Return the job of a stage."""
        model = stage.model
        return cls(
            home=str(run.store.root),
            images=run.images.to_json(),
            scratch=str(scratch),
            trained=model.to_json() if isinstance(model, ArtifactRef) else None,
            untrained=None if isinstance(model, ArtifactRef) else model,
            both=stage.untrained,
            config=stage.config,
        )

    @property
    def device(self) -> str:
        """The device of the encoders."""
        return self.config.device

    def work(self, progress: ProgressFn, device: str) -> int:
        """Encode until every part exists."""
        config = self.config.model_copy(update={"device": device})
        model = ArtifactRef(**self.trained) if self.trained else self.untrained
        assert model is not None
        stage = FeatureStage(model=model, config=config, untrained=self.both)
        return stage.work(self.context(progress), Path(self.scratch))

    def needed(self) -> list[str]:
        """Return nothing: the model and the pixels are in the artifact root."""
        return []


class EmbedJob(WorkerJob):
    """Embed the images that a file in `folder` lists, in parts in that folder (`reid.embedding.parts`)."""

    kind: Literal["embed"] = "embed"
    setting: ClassVar[str] = "evaluate.device"
    folder: str
    root: str
    model: dict[str, str]
    mode: str
    batch_size: int
    precision: Literal["no", "bf16", "fp16"]
    wanted: str
    """The device setting."""
    sample: str
    """One of the images, absolute."""

    @property
    def device(self) -> str:
        """The device of the encoder."""
        return self.wanted

    def work(self, progress: ProgressFn, device: str) -> int:
        """Embed until every part exists."""
        from reid.embedding.embedder import Embedder
        from reid.embedding.parts import EmbeddingParts

        parts = EmbeddingParts(Path(self.folder), self.batch_size)
        if not parts.missing():
            return 0
        model, home = ArtifactRef(**self.model), Path(self.home)
        embedder = Embedder.load(model, home=home, device=device, batch_size=self.batch_size, precision=self.precision)
        return parts.work(embedder, Path(self.root), self.mode, progress)

    def needed(self) -> list[str]:
        """Return an image, and the weights of the model."""
        sample = [] if is_remote(self.sample) else [str(file_of(Path(self.sample)))]
        return [*sample, *(str(path) for path in Path(self.model["path"]).glob("*.safetensors"))]


Job = CaptionJob | FeatureJob | EmbedJob
_JOB: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])


def read_job(text: str) -> Job:
    """Return the job that `model_dump_json` wrote."""
    return _JOB.validate_json(text)
