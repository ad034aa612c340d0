"""Checks of the images: do the stages have the splits they need, do they fill a batch, and can they be evaluated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from captioning.stage.sentences import sentences_of
from data.columns.texts import Texts
from data.errors import counted
from data.people import Mask, cameras_known, is_junk
from data.splits import TRAIN
from flows.preflight.plan import Plan, message_of
from reid.inputs.evaluation_rows import check_test_split, has_match
from reid.inputs.image_rows import read_labels
from reid.inputs.training_rows import batch_problems, held_out_identities

_SHOWN: Final = 5


def label_problems(plan: Plan) -> Iterator[str]:
    """Yield stages that need identities if the reader does not know any. Needs no image."""
    lacking = [name for name in ("train", "evaluate") if name in plan.stages]
    if lacking and not plan.data.has_identities:
        unlabeled = plan.data.labels == "none"
        source = "data.labels=none" if unlabeled else f"data.reader={plan.data.reader}"
        remedy = "data.labels=fields" if unlabeled else "data.reader=folders for one folder per person"
        yield (
            f"{source} does not know identities, but {' and '.join(lacking)} need them: run clip-scgi caption instead,"
            f" or set {remedy}"
        )


def split_problems(plan: Plan) -> Iterator[str]:
    """Yield stages that need images of a split of which the dataset has none."""
    if not plan.data.has_identities:
        return  # `label_problems` reports these
    for stage, needed in (("train", ("train",)), ("evaluate", ("query", "gallery"))):
        empty = [split for split in needed if not len(plan.rows.of(split).pid)]
        if stage in plan.stages and empty:
            instead = "caption" if stage == "train" else "train"
            yield (
                f"{stage} needs images with split={' and split='.join(needed)}, but the dataset has none with split="
                f"{' or split='.join(empty)}: {_split_remedy(plan)}, or stop before it (clip-scgi {instead})"
            )


def _split_remedy(plan: Plan) -> str:
    """Return what gives a dataset the splits that it lacks."""
    if not plan.data.splits_by_rule:
        return "add some, or set data.split=by_identity to split its identities by rule"
    if plan.data.train_fraction in (0, 1):
        return f"set data.train_fraction=0.5 (it is {plan.data.train_fraction:g})"
    return "add people, and at least two images of each"


def identity_problems(plan: Plan) -> Iterator[str]:
    """Yield a training split that does not fill a batch, after held-out identities, for all training processes."""
    if "train" in plan.stages and len(plan.rows.of("train").pid):
        yield from batch_problems(plan.rows.of("train").pid, plan.train, plan.scale.trainers)


def validation_problems(plan: Plan) -> Iterator[str]:
    """Yield an evaluation during training that could not measure anything."""
    validation = plan.train.validation
    if "train" in plan.stages and validation.every:
        yield from _held_out_problems(plan) if validation.holds_out else _test_split_problems(plan)


def _held_out_problems(plan: Plan) -> Iterator[str]:
    pids = plan.rows.of("train").pid
    if batch_problems(pids, plan.train):
        return  # `identity_problems` reports these
    held_out = held_out_identities(pids, plan.train)
    _, counts = np.unique(pids[np.isin(pids, held_out)], return_counts=True)
    if counts.max(initial=0) < 2:
        yield (
            f"train.validation.held_out={plan.train.validation.held_out:g} holds out identities with one image each, "
            "which cannot be searched: set train.validation.every=0"
        )


def _test_split_problems(plan: Plan) -> Iterator[str]:
    query, gallery = plan.rows.of("query"), plan.rows.of("gallery")
    lacking = [name for name, part in (("query", query), ("gallery", gallery)) if not len(part.pid)]
    remedy = "set train.validation.images=held_out, or train.validation.every=0"
    if lacking:
        yield (
            "train.validation.images=test needs query and gallery images, and the dataset has none with split="
            f"{' or split='.join(lacking)}: {remedy}"
        )
    elif not has_match(query.pid, query.camid, gallery.pid, gallery.camid, "none").any():
        yield (
            f"train.validation.images=test does not find a query with a gallery image of the same identity: {remedy}"
        )


def camera_problems(plan: Plan) -> Iterator[str]:
    """Yield cameras that camera embeddings (SIE) need but that are unknown or have no training image."""
    during = plan.train.validation.every and not plan.train.validation.holds_out and "train" in plan.stages
    if plan.train.sie and "train" in plan.stages and not cameras_known(plan.rows.camid):
        yield (
            f"train.sie={plan.train.sie:g} learns one embedding per camera, but the cameras of this dataset are unknown"
            ": set train.sie=0"
        )
        return
    if not plan.train.sie or not ("evaluate" in plan.stages or during):
        return
    known, wanted = (plan.rows.of(*splits).camid for splits in (("train",), ("query", "gallery")))
    unseen = np.setdiff1d(wanted, known).tolist()
    if unseen:
        shown = ", ".join(map(str, unseen[:_SHOWN])) + (", ..." if len(unseen) > _SHOWN else "")
        yield (
            f"train.sie={plan.train.sie:g} learns one embedding per camera, and the test images have "
            f"{counted(len(unseen), 'camera')} without a training image ({shown}): set train.sie=0"
        )


def evaluation_problems(plan: Plan) -> Iterator[str]:
    """Yield a test split without a query that has a match."""
    if "evaluate" in plan.stages and _has_test_images(plan):
        yield from message_of(lambda: check_test_split(plan.run.images, plan.evaluate))


def evaluation_notices(plan: Plan) -> Iterator[str]:
    """Yield notices about queries that `evaluate` will skip."""
    if "evaluate" in plan.stages and _has_test_images(plan):
        yield from check_test_split(plan.run.images, plan.evaluate)


def _has_test_images(plan: Plan) -> bool:
    """Return True if there are queries and a gallery; `split_problems` reports it otherwise."""
    return all(len(plan.rows.of(split).pid) for split in ("query", "gallery"))


def correction_problems(plan: Plan) -> Iterator[str]:
    """Yield a damaged history of corrections, and too few imported captions for a run without a captioning model."""
    if plan.caption.corrections == "use" and {"caption", "train"} & plan.stages:
        yield from message_of(lambda: plan.corrections)
        if plan.caption.engine == "imported" and not any(message_of(lambda: plan.corrections)):
            yield from _import_problems(plan)


def _import_problems(plan: Plan) -> Iterator[str]:
    images = plan.run.images.sha256()
    written = plan.corrections.with_text()
    file = "clip-scgi corrections import FILE --recipe RECIPE"
    if not written:
        yield (
            f"caption.engine=imported: none of the {len(images):,} images has an imported caption for template"
            f" {plan.caption.prompt_template.id}: import some with {file}, or set caption.engine=transformers"
        )
        return
    captioned = written.places(images) >= 0
    yield from _uncaptioned(plan, captioned, "imported caption", f"import more with {file}, or ")


def sentence_problems(plan: Plan) -> Iterator[str]:
    """Yield a dataset without sentences, or with too few, for a run that takes its captions from them."""
    is_read = "caption" in plan.stages or ("train" in plan.stages and plan.train.needs_captions)
    if plan.caption.engine != "dataset" or not is_read:
        return
    sentences = sentences_of(plan.run.images, plan.caption.sentence)
    if sentences.num_rows:
        captioned = plan.run.images.digests().paths.places_in(Texts(sentences["image_path"])) >= 0
        yield from _uncaptioned(plan, captioned, f"sentence number {plan.caption.sentence}", "")
    elif sentences_of(plan.run.images, 0).num_rows:
        yield (
            f"caption.sentence={plan.caption.sentence}: no image has so many sentences (the first is number 0): set"
            " caption.sentence=0"
        )
    else:
        yield (
            f"caption.engine=dataset: the dataset {plan.data.label} has no sentences (data.reader={plan.data.reader}):"
            " set caption.engine=transformers and caption.template=scgi"
        )


def _uncaptioned(plan: Plan, captioned: Mask, what: str, remedy: str) -> Iterator[str]:
    """Yield a share of training images without a caption that training does not accept.

    captioned: whether each image of images.parquet has one, [N].
    """
    rows = read_labels(plan.run.images)
    trained = (rows.split == TRAIN) & ~is_junk(rows.pid)
    pids = rows.pid[trained]
    if plan.train.validation.holds_out and not batch_problems(pids, plan.train):
        trained &= ~np.isin(rows.pid, held_out_identities(pids, plan.train))
    absent, total = int((trained & ~captioned).sum()), int(trained.sum())
    if "train" in plan.stages and plan.train.needs_captions and absent > plan.train.max_uncaptioned * total:
        yield (
            f"caption.engine={plan.caption.engine}: {absent:,} of {total:,} training images have no {what}, more"
            f" than train.max_uncaptioned={plan.train.max_uncaptioned:g}: {remedy}set"
            f" train.max_uncaptioned={math.ceil(100 * absent / total) / 100:g}"
        )


def correction_notices(plan: Plan) -> Iterator[str]:
    """Yield how many corrections the stages will read."""
    if plan.caption.corrections == "ignore" or not {"caption", "train"} & plan.stages:
        return
    if any(message_of(lambda: plan.corrections)):
        return  # `correction_problems` reports it
    kinds = sorted(plan.corrections.count_kinds().items())
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds)
    yield f"caption.corrections=use: corrections for this dataset: {listed or 'none'}"
