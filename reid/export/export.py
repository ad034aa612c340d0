"""Export a trained model into one folder, which appears when every file is written and checked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from data.artifacts.store import ArtifactStore
from data.errors import ConfigError
from data.files import full_disk_explained, sync_file, sync_folder, write_json, write_text
from reid.embedding.embedder import JOINT, Embedder
from reid.export.card import CARD_FILE, model_card
from reid.export.onnx_files import OnnxFile, require_onnx, write_image_encoder, write_text_encoder
from reid.export.open_clip_files import BEYOND_FILE, BEYOND_FOLDER, CLIP_FILE, OpenClipFiles, write_open_clip
from reid.export.provenance import ModelFacts, model_facts
from reid.export.tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, write_tokenizer
from reid.models.backbone import open_clip_shape
from reid.models.file_configs import OPEN_CLIP_CONFIG

Format = Literal["onnx", "open_clip", "all"]
PREPROCESSING_FILE: Final = "preprocessing.json"
TEXT_FILE: Final = "text.onnx"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export_model` wrote. notes: what the folder lacks and why. n_bytes: size of all files."""

    onnx: list[OnnxFile]
    open_clip: OpenClipFiles | None
    notes: list[str]
    n_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What to write. onnx, open_clip: whether. notes: what the folder lacks and why."""

    embedder: Embedder
    facts: ModelFacts
    modes: Sequence[str]
    onnx: bool
    open_clip: bool
    notes: list[str]


def export_model(
    embedder: Embedder,
    store: ArtifactStore,
    out: Path,
    *,
    format: Format = "all",
    modes: Sequence[str] = (),
    report: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write the folder `out`: encoders, preprocessing, tokenizer and model card.

    Every encoder is compared with the model before the folder appears under its name. An earlier export is replaced.

    Args:
        embedder: the trained model, on the CPU.
        store: where the artifacts that the model card cites are looked up.
        out: the folder; it must not exist, be empty, or be an earlier export.
        format: onnx, open_clip, or all. "all" leaves out open_clip, with a note, if it cannot build the model.
        modes: modes of the ONNX files; by default those of retrieval (image, fused). ``joint`` also writes the text
            encoder, whose embeddings are comparable with it.
        report: called with the name of each file before it is written.

    Raises:
        ConfigError: `out` is something else, a mode does not exist, the extra `onnx` is missing, the model is
            untrained, or open_clip cannot build the model.
        ClipScgiError: an exported encoder differs from the model, or the disk is full.
    """
    if embedder.model is None or embedder.device != "cpu":
        raise ConfigError('export needs a trained model on the CPU: Embedder.load(MODEL, device="cpu")')
    _check_target(out)
    chosen = tuple(dict.fromkeys(map(embedder.resolve_mode, modes))) or _retrieval_modes(embedder)
    facts = model_facts(embedder.model, store)
    left_out = "" if format == "onnx" else _left_out(facts, format)
    job = _Job(
        embedder=embedder,
        facts=facts,
        modes=chosen,
        onnx=format != "open_clip",
        open_clip=format != "onnx" and not left_out,
        notes=[left_out] if left_out else [],
    )
    if job.onnx:
        require_onnx()
    with full_disk_explained(out.absolute().parent, f"{out} could not be written"), _published(out) as draft:
        return _write(job, draft, report)


def preprocessing(embedder: Embedder, *, texts: bool) -> dict[str, Any]:
    """Return what a program has to do before it calls an exported encoder, as JSON. texts: also for sentences."""
    shape, backbone = embedder.task.preprocess, embedder.task.backbone
    images: dict[str, Any] = {
        "size": [shape.height, shape.width],
        "resize": "the whole image to size, without keeping its aspect ratio",
        "interpolation": "bicubic",
        "antialias": True,
        "orientation": "turned upright by EXIF",
        "color_order": "RGB",
        "scale": 1 / 255,
        "mean": list(shape.mean),
        "std": list(shape.std),
        "layout": "NCHW",
        "dtype": "float32",
    }
    sentences = {
        "tokenizer": TOKENIZER_FILE,
        "start": backbone.tokenizer.start,
        "end": backbone.tokenizer.end,
        "padding": 0,
        "context": backbone.context,
        "dtype": "int64",
    }
    cameras = embedder.task.camera_ids_K.tolist() if embedder.needs_cameras else None
    return {
        "clip_scgi_export": 1,
        "model": embedder.fingerprint,
        "images": images,
        **({"texts": sentences} if texts else {}),
        **({"cameras": cameras} if cameras else {}),
    }


def _retrieval_modes(embedder: Embedder) -> tuple[str, ...]:
    return tuple(mode for mode in embedder.modes if mode != JOINT)


def _left_out(facts: ModelFacts, format_: Format) -> str:
    """Return why open_clip cannot load the model, "" if it can. Raises ConfigError if nothing else is wanted."""
    try:
        open_clip_shape(facts.config.backbone)
    except ConfigError as error:
        if format_ == "open_clip":
            raise
        return f"Without open_clip: {str(error).split(':')[0]}."
    return ""


def _open_clip_notes(job: _Job) -> Iterator[str]:
    """Yield what open_clip does not compute."""
    if job.facts.config.sie:
        yield (
            "open_clip does not add camera embeddings (SIE), so its image features are those of CLIP without cameras, "
            "and differ from this model's."
        )
    fused = " and `fused`" if "fused" in job.embedder.modes else ""
    beside = "joint feature" if job.facts.config.retrieval_head == "joint" else "feature of the retrieval head"
    yield (
        "open_clip's image feature is the mode `joint`. It does not return the retrieval feature `image` (class token "
        f"of the last layer and {beside} side by side){fused}."
    )


def _write(job: _Job, draft: Path, report: Callable[[str], None]) -> Exported:
    files: dict[str, str] = {}
    onnx = list(_onnx(job, draft, report)) if job.onnx else []
    for file in onnx:
        files[file.name] = _onnx_text(file)
    open_clip = _open_clip(job, draft, files, report) if job.open_clip else None
    if job.onnx and JOINT in job.modes and not (draft / TOKENIZER_FILE).exists():
        write_tokenizer(draft, job.embedder.task.backbone)
    texts = (draft / TOKENIZER_FILE).exists()
    write_json(draft / PREPROCESSING_FILE, preprocessing(job.embedder, texts=texts))
    files[PREPROCESSING_FILE] = "how an image or a sentence becomes the input of an encoder"
    if texts:
        files[TOKENIZER_FILE] = (
            "tokenizer of the library `tokenizers`, with start and end token, truncation and padding"
        )
    beyond = open_clip.beyond if open_clip else {}
    write_text(draft / CARD_FILE, model_card(job.facts, files, beyond, job.notes))
    size = sum(path.stat().st_size for path in draft.rglob("*") if path.is_file())
    return Exported(onnx=onnx, open_clip=open_clip, notes=job.notes, n_bytes=size)


def _onnx(job: _Job, draft: Path, report: Callable[[str], None]) -> Iterator[OnnxFile]:
    task = job.embedder.task
    encoders = {**task.encoders(), JOINT: task.encode_joint}
    for mode in job.modes:
        report(f"{mode}.onnx")
        yield write_image_encoder(draft / f"{mode}.onnx", task, encoders[mode])
    if JOINT in job.modes:
        report(TEXT_FILE)
        yield write_text_encoder(draft / TEXT_FILE, task.backbone)


def _onnx_text(file: OnnxFile) -> str:
    kind = "sentences, comparable with the mode `joint`" if file.name == TEXT_FILE else "images"
    return (
        f"encoder of {kind}: {', '.join(f'`{name}`' for name in file.inputs)} -> `features`, {file.width} values of "
        f"length one, any batch size; differs from torch by at most {file.difference:.0e}"
    )


def _open_clip(job: _Job, draft: Path, files: dict[str, str], report: Callable[[str], None]) -> OpenClipFiles:
    report(CLIP_FILE)
    job.notes.extend(_open_clip_notes(job))
    written = write_open_clip(draft, job.embedder.task, job.facts.config.backbone)
    files[CLIP_FILE] = f"CLIP of this model; differs from ours by at most {written.difference:.0e} in open_clip"
    files[OPEN_CLIP_CONFIG] = 'its config: `open_clip.create_model_and_transforms("local-dir:FOLDER")`'
    if written.beyond:
        files[f"{BEYOND_FOLDER}/{BEYOND_FILE}"] = "the tensors that CLIP has no place for"
    if (draft / TOKENIZER_CONFIG_FILE).exists():
        files[TOKENIZER_CONFIG_FILE] = "with which transformers and open_clip load tokenizer.json"
    return written


def _check_target(out: Path) -> None:
    """Raise ConfigError if `out` is anything but missing, an empty folder, or an earlier export."""
    if out.is_dir() and (not any(out.iterdir()) or (out / PREPROCESSING_FILE).is_file()):
        return
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists and is not an earlier export; give another folder to write")


@contextmanager
def _published(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out`; on success it becomes `out`, and an earlier export is removed."""
    place = out.absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        yield draft
        for path in draft.rglob("*"):
            if path.is_file():
                path.chmod(0o644)
                sync_file(path)
        draft.chmod(0o755)
        former = draft.with_name(f"{draft.name}.former")
        if place.exists():
            place.rename(former)
        draft.rename(place)
        sync_folder(place.parent)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
