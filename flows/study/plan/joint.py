"""The group joint: ways to keep search by sentence, which training on identities damages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flows.study.plan.main import UNTRAINED
from flows.study.plan.parts import FUSED, IMAGE, Captions, Comparison, Metric, Variant, ask
from reid.config.train import Method

_CAPTION: Final = {"scgi.contrast_text": "caption"}
_SEPARATE: Final = {"retrieval_head": "separate"}
_DISTILL: Final = {"low": 1.0, "high": 5.0}
_BLEND: Final = {"blend": 0.5}


def _variant(
    name: str,
    title: str,
    changes: Mapping[str, Any],
    *,
    captions: Captions = "captioner",
    method: Method = "clip_scgi",
) -> Variant:
    return Variant(name=name, title=title, group="joint", method=method, captions=captions, changes=changes)


def _baseline(name: str, title: str, changes: Mapping[str, Any]) -> Variant:
    return _variant(f"baseline_{name}", f"CLIP baseline, {title}", changes, captions="none", method="clip_baseline")


VARIANTS: Final = (
    _variant("caption", "L_con on captions", _CAPTION),
    _variant("caption_shuffled", "L_con on other people's captions", _CAPTION, captions="shuffled"),
    _variant("caption_true", "L_con on true attributes", _CAPTION, captions="true"),
    *(
        _variant(f"distill_{name}", f"CLIP-SCGI, distilled ({weight:g})", {"loss.distill_weight": weight})
        for name, weight in _DISTILL.items()
    ),
    _variant("separate", "CLIP-SCGI, separate head", _SEPARATE),
    _variant("separate_caption", "Separate head, L_con on captions", _SEPARATE | _CAPTION),
    _variant("separate_distill", "Separate head, distilled", _SEPARATE | {"loss.distill_weight": _DISTILL["high"]}),
    _variant("blend", "CLIP-SCGI, half of the trained weights", _BLEND),
    _variant("caption_distill", "L_con on captions, distilled", _CAPTION | {"loss.distill_weight": _DISTILL["low"]}),
    _variant("caption_blend", "L_con on captions, half of the trained weights", _CAPTION | _BLEND),
    _variant(
        "distill_blend", "Distilled, half of the trained weights", _BLEND | {"loss.distill_weight": _DISTILL["high"]}
    ),
    _variant(
        "all_three",
        "L_con on captions, distilled, half of the weights",
        _CAPTION | _BLEND | {"loss.distill_weight": _DISTILL["high"]},
    ),
    _variant(
        "all_three_shuffled",
        "The same on other people's captions",
        _CAPTION | _BLEND | {"loss.distill_weight": _DISTILL["high"]},
        captions="shuffled",
    ),
    _baseline("separate", "separate head", _SEPARATE),
    _baseline("blend", "half of the trained weights", _BLEND),
)
"""All but the baseline's are CLIP-SCGI. The baseline reads no captions, so it cannot be distilled."""

_TRIED: Final = tuple(variant for variant in VARIANTS if variant.captions in ("captioner", "none"))


def _reference(variant: Variant) -> str:
    return "scgi" if variant.method == "clip_scgi" else "baseline"


def _keeps(variant: Variant, than: str, question: str, metric: Metric) -> Comparison:
    return ask(f"{variant.title}: {question}?", variant.name, than, group="joint", metric=metric)


COMPARISONS: Final = (
    *(_keeps(each, UNTRAINED, "search by sentence as before training", "t2i_mAP") for each in _TRIED),
    *(_keeps(each, _reference(each), "at what cost in image mode", "mAP") for each in _TRIED),
    ask(
        "L_con on captions: do captions matter to search?",
        "caption",
        "caption_shuffled",
        group="joint",
        metric="t2i_mAP",
    ),
    *(
        ask(f"{each.title}: more than the baseline?", each.name, "baseline", group="joint")
        for each in _TRIED
        if each.method == "clip_scgi"
    ),
    Comparison(
        question="L_con on captions, fused: more than the baseline?",
        left=("caption", FUSED),
        right=("baseline", IMAGE),
        group="joint",
    ),
    ask("All three: do captions matter?", "all_three", "all_three_shuffled", group="joint"),
    ask("All three: do captions matter to search?", "all_three", "all_three_shuffled", group="joint", metric="t2i_mAP"),
    ask("L_con on captions: do captions matter?", "caption", "caption_shuffled", group="joint"),
    ask("L_con on captions: do captions matter, fused?", "caption", "caption_shuffled", group="joint", fused=True),
    ask("L_con on captions: what would perfect ones add?", "caption_true", "caption", group="joint"),
    ask("L_con on captions: do perfect ones matter?", "caption_true", "caption_shuffled", group="joint"),
)
