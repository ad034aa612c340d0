"""The model card of an export, written from the provenance of the model: README.md with YAML front matter."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from data.errors import counted
from reid.config.train import TrainConfig
from reid.evaluation.intervals import SCORE_METHOD, Interval
from reid.evaluation.sentences.scores import TEXT_METHOD
from reid.evaluation.sentences.source import RANKED, SOURCES
from reid.export.provenance import METRICS, TEXT_METRICS, Evaluation, ModelFacts, ScoreRow, TextRow, TextScores

CARD_FILE: Final = "README.md"
_METHODS: Final = {"clip_scgi": "CLIP-SCGI", "clip_reid": "CLIP-ReID", "clip_baseline": "fine-tuned CLIP baseline"}
_BACKBONES: Final = {"tiny": "tiny CLIP", "vit_b16": "CLIP ViT-B/16", "rn50": "CLIP ResNet-50"}
_NAMES: Final = {"mAP": "mAP", "rank1": "R1", "rank5": "R5", "rank10": "R10", "mINP": "mINP"}
_PARTS: Final = {
    "camera_shift_KV": "embeddings of the cameras of the training data (SIE)",
    "camera_ids_K": "the cameras that have an embedding",
    "cff": "contextual feature fusion, which computes the mode `fused`",
    "cgi": "caption-guided inversion, used in training only",
    "fused_head": "batch-norm neck and identity classifier of the fused feature, used in training only",
    "heads": "batch-norm necks and identity classifiers, used in training only",
    "plain_1TD": "the encoded fixed prompt of the mode `fused`",
    "prompt": "the fixed words around the pseudo-word, used in training only",
    "retrieval": "projection of the last class token to the retrieval feature, part of the mode `image`",
    "texts_CD": "features of the learned prompts, used in training only",
}


def model_card(facts: ModelFacts, files: Mapping[str, str], beyond: Mapping[str, int], notes: Sequence[str]) -> str:
    """Return the text of the model card.

    Args:
        facts: what is known about the model.
        files: name of each exported file -> what it is.
        beyond: parts of the model that CLIP has no place for -> number of tensors, if an open_clip folder is written.
        notes: what the export leaves out, as sentences.
    """
    sections = (
        _heading(facts),
        _files(files, beyond, notes),
        _data(facts),
        _captions(facts),
        _scores(facts),
        _settings(facts),
        _limits(facts),
        _USE,
    )
    return _front_matter(facts) + "\n" + "\n\n".join(section.strip("\n") for section in sections) + "\n"


def title(facts: ModelFacts) -> str:
    """Return the name of a model: method, backbone and training data."""
    config = facts.config
    trained_on = f" trained on {facts.origin['dataset']}" if facts.origin else ""
    return f"{_METHODS[config.method]} on {_BACKBONES[config.backbone.name]}{trained_on}"


def _front_matter(facts: ModelFacts) -> str:
    """Return YAML whose values are JSON, which YAML contains."""
    fields: dict[str, Any] = {
        "license": "other",
        "license_name": "see-terms-of-data-and-weights",
        "library_name": "clip-scgi",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["person-re-identification", "image-retrieval", "clip", facts.config.method],
        "model-index": [{"name": title(facts), "results": list(_index(facts.evaluations))}],
    }
    if not facts.evaluations:
        del fields["model-index"]
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---", ""])


def _index(evaluations: Sequence[Evaluation]) -> Iterator[dict[str, Any]]:
    for one in evaluations:
        yield {
            "task": {"type": "image-retrieval", "name": "Person re-identification"},
            "dataset": {"type": one.dataset, "name": one.dataset},
            "metrics": [
                {"type": name, "name": f"{_NAMES[name]} ({row.mode})", "value": round(row.percent[name], 2)}
                for row in one.rows
                if row.model == "trained"
                for name in ("mAP", "rank1")
            ],
        }


def _heading(facts: ModelFacts) -> str:
    size = facts.config.backbone
    modes = "`image` and `fused`" if facts.config.method == "clip_scgi" and facts.config.scgi.cff else "`image`"
    return f"""# {title(facts)}

An encoder of person crops ({size.height} x {size.width} pixels) for re-identification: images of one person should have
embeddings with a higher cosine than images of different people. Retrieval modes: {modes}.{_blended(facts.config)}
Fingerprint of the model: `{facts.fingerprint}`.
"""


def _blended(config: TrainConfig) -> str:
    share = config.blend
    tower = f"{share:g} of its trained weights plus {1 - share:g} of its weights before training"
    return f"\nThe image tower is {tower} (WiSE-FT)." if share < 1 else ""


def _files(files: Mapping[str, str], beyond: Mapping[str, int], notes: Sequence[str]) -> str:
    lines = ["## Files", "", "| file | content |", "|---|---|"]
    lines += [f"| `{name}` | {content} |" for name, content in files.items()]
    if beyond:
        lines += ["", "CLIP has no place for these tensors of the model, so open_clip does not load them:", ""]
        lines += [f"- `{name}` ({count}): {_PARTS.get(name, 'of this method')}" for name, count in beyond.items()]
    if notes:
        lines += [part for note in notes for part in ("", note)]
    return "\n".join(lines)


def _data(facts: ModelFacts) -> str:
    origin, training, dataset = facts.origin, facts.training, facts.dataset
    if origin is None:
        return "## Training data\n\nNot recorded in the model."
    version = f", version {origin['version']}" if origin["version"] else ""
    lines = [
        "## Training data",
        "",
        f"- Dataset: {origin['dataset']}{version}; hash of images and labels `{origin['dataset_hash']}`.",
    ]
    if training is not None:
        lines.append(
            f"- Trained on {training['images']:,} images of {training['identities']:,} identities in "
            f"{training['steps']:,} steps; {training['images_without_caption']:,} images without a caption were left "
            f"out, {training['images_held_out']:,} held out for validation."
        )
    if dataset is not None and dataset.counts:
        counts = (
            f"{split}: " + ", ".join(f"{number:,} {name}" for name, number in numbers.items())
            for split, numbers in dataset.counts.items()
        )
        lines.append(f"- The dataset has {'; '.join(counts)}. {dataset.rejected:,} files were rejected.")
    weights = facts.settings["backbone"]["weights"]
    digests = ", ".join(f"`{name}` {value}" for name, value in (origin["weights"].get("files") or {}).items())
    lines.append(f"- Started from the weights `{weights}`{f' (sha256: {digests})' if digests else ''}.")
    return "\n".join(lines)


def _captions(facts: ModelFacts) -> str:
    if not facts.config.needs_captions:
        return f"## Captions\n\n{_METHODS[facts.config.method]} does not read captions."
    fingerprint = facts.origin["captions"] if facts.origin else None
    if facts.captioned is None:
        known = f"Artifact `{fingerprint}`, which was not in the store of the export." if fingerprint else "Unknown."
        return f"## Captions\n\n{known}"
    lines = ["## Captions", "", f"Read in training only (artifact `{fingerprint}`). Written by:", ""]
    lines += [
        f"- {model}, revision {revision}, template `{template}` (captioner `{captioner}`)"
        for model, revision, template, captioner in facts.captioned.captioners
    ]
    lines += ["", f"Captions of the train split by status: {_listed(facts.captioned.statuses)}."]
    if facts.captioned.sources:
        lines.append(f"Corrections were applied; whose text it is: {_listed(facts.captioned.sources)}.")
    return "\n".join(lines)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _scores(facts: ModelFacts) -> str:
    if not facts.evaluations:
        return "## Scores\n\nNo evaluation of this model was in the store of the export."
    parts = ["## Scores", "", f"In percent, with the {SCORE_METHOD}."]
    for one in facts.evaluations:
        parts += ["", f"### {one.dataset}", "", *_table(one), "", f"{one.protocol} Evaluation `{one.fingerprint}`."]
        parts += ["", *_text_to_image(one.text)]
    return "\n".join(parts)


def _text_to_image(text: TextScores | None) -> Iterator[str]:
    """Yield the lines of text to image: its sentences, scores and protocol."""
    if text is None:
        yield "Text to image was not measured in this evaluation."
        return
    about = text.about
    yield (
        f"Text to image, {SOURCES[about['source']]}: {about['n_sentences']:,} sentences ({about['n_distinct']:,} "
        f"distinct), {counted(about['n_gallery'], RANKED[about['source']])}. Equal sentences of different people "
        f"allow an R1 of {100 * about['ceiling_rank1']:.1f} at most."
    )
    yield ""
    yield f"| model | {' | '.join(_NAMES[name] for name in TEXT_METRICS)} |"
    yield "|---" * (len(TEXT_METRICS) + 1) + "|"
    for row in text.rows:
        yield f"| {row.model} | {' | '.join(_value(row, name) for name in TEXT_METRICS)} |"
    yield ""
    yield f"{about['description']} In brackets: {TEXT_METHOD}."


def _table(one: Evaluation) -> Iterator[str]:
    yield "| model | mode | " + " | ".join(_NAMES[name] for name in METRICS) + " | queries | gallery |"
    yield "|---" * (len(METRICS) + 4) + "|"
    for row in one.rows:
        values = " | ".join(_value(row, name) for name in METRICS)
        yield f"| {row.model} | {row.mode} | {values} | {row.n_queries:,} | {one.n_gallery:,} |"


def _value(row: ScoreRow | TextRow, name: str) -> str:
    interval: Interval | None = row.intervals[name] if row.intervals else None
    return f"{row.percent[name]:.1f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")


def _settings(facts: ModelFacts) -> str:
    libraries = f"Python {facts.origin['python']}, " if facts.origin else ""
    if facts.origin:
        libraries += ", ".join(f"{name} {version}" for name, version in facts.origin["libraries"].items())
    settings = json.dumps(facts.settings, indent=2, ensure_ascii=False)
    return f"## Settings\n\n{libraries or 'Library versions are not recorded'}.\n\n```json\n{settings}\n```"


def _limits(facts: ModelFacts) -> str:
    lines = [
        "- Scores hold for the datasets above. Expect lower scores on other cameras, places, seasons and crops, and "
        "measure them.",
        "- The nearest image is always returned, also when the person is not in the gallery. No threshold on the "
        "cosine is calibrated.",
    ]
    if not facts.evaluations:
        lines[0] = "- No score is known. Evaluate the model before you rely on it."
    if facts.config.backbone.name == "tiny":
        lines.append("- The tiny CLIP was trained on drawings of people. On photographs it is for trying things out.")
    if facts.config.needs_captions:
        lines.append(
            "- The captions name a perceived gender and age group, which can be wrong, and the model learned from them."
        )
    if facts.cameras:
        lines.append(f"- It only encodes images of the cameras {', '.join(map(str, facts.cameras))}.")
    return "\n".join(["## Limits", "", *lines])


_USE: Final = """## Use and license

Person re-identification is surveillance technology. Settle consent and legal basis first: in many jurisdictions an
embedding that singles out a person is biometric data. Do not use the output as the sole basis of a decision about a
person. Delete embeddings, captions and images that you no longer need, and remove people who ask for it.

The terms of the training data and of the start weights apply to this model; research datasets are licensed for
research. The software that trained it, clip-scgi, is licensed under Apache-2.0; that license does not cover the data.
"""
