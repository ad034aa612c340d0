"""Images encoded by several workers: the features of an evaluation, and the embeddings of files."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from data.artifacts.fingerprint import digest, digest_bytes
from data.artifacts.store import ArtifactStore
from data.progress import ProgressFn
from data.stages.stage import RunContext
from flows.execution.ui import progress_artifact
from flows.recipes import ScaleConfig
from flows.terminal import progress_bar
from flows.workers.jobs import EmbedJob, FeatureJob, Job
from flows.workers.local import run_here
from flows.workers.ray_run import run_on_ray
from reid.evaluation.features import FeatureStage
from reid.evaluation.stage import EvaluateStage

if TYPE_CHECKING:
    from reid.embedding.batches import EmbeddedBatch
    from reid.embedding.embedder import Embedder
    from reid.embedding.files import EmbedFn
    from reid.embedding.images import DistinctImages


def run_together(job: Job, scale: ScaleConfig, progress: ProgressFn) -> None:
    """Run `job` with the workers of `scale.embed_workers`. Raises the error of a worker."""
    if scale.runner == "ray":
        run_on_ray(job, scale, scale.embed_workers, progress)
    else:
        run_here(job, scale, scale.embed_workers, progress)


def encode_together(stage: EvaluateStage | FeatureStage, scale: ScaleConfig, run: RunContext) -> None:
    """Encode the test images with the workers of `scale`, in parts that `stage` puts together when it runs next."""
    features = stage.features if isinstance(stage, EvaluateStage) else stage
    if features.find(run) is not None:
        return
    scratch = run.store.scratch(stage.name, stage.plan(run).fingerprint)
    if not features.parts(run, scratch).missing():
        return
    with progress_bar("features") as bar, progress_artifact("features", bar) as shown:
        features.prepare(run.with_progress(shown))
        run_together(FeatureJob.of(run, features, scratch), scale, shown)


def embed_together(store: ArtifactStore, scale: ScaleConfig, device: str, progress: ProgressFn) -> EmbedFn:
    """Return a function that embeds distinct images as `embed_distinct` does, with the workers of `scale`.

    device: their device setting. progress: called while they work.
    """

    def embed(
        embedder: Embedder, images: DistinctImages, *, root: Path, mode: str
    ) -> Generator[EmbeddedBatch, None, None]:
        from reid.embedding.files import identity_of
        from reid.embedding.parts import EmbeddingParts

        if not len(images) or embedder.model is None:
            return
        keys = digest_bytes(images.keys(by_camera=embedder.needs_cameras).tobytes())
        folder = store.scratch("embed", digest([identity_of(embedder, mode), keys])[:32])
        parts = EmbeddingParts.write_list(folder, images, embedder.config.batch_size)
        job = EmbedJob(
            home=str(store.root),
            folder=str(folder),
            root=str(root),
            model=embedder.model.to_json(),
            mode=mode,
            batch_size=embedder.config.batch_size,
            precision=embedder.config.precision,
            wanted=device,
            sample=str(root / images.files.paths[images.firsts()[0]]),
        )
        run_together(job, scale, progress)
        yield from parts.read()
        parts.remove()

    return embed
