"""The groups queries and depth, and the group settings: alternatives to the defaults of CLIP-SCGI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from flows.study.plan.parts import Variant, ask

QUERIES: Final = (1, 2, 4, 8)
DEPTHS: Final = (1, 2, 3, 4, 5, 6)
PORT: Final = {
    "scgi.contrast_image": "refined",
    "scgi.fusion_tokens": "refined",
    "scgi.inversion_feed_norm": True,
    "scgi.supervised": "fused",
    "scgi.pairing": "image",
    "scgi.fixed_prompt_ratio": 0.0,
    "loss.contrast_weight": 0.5,  # it halves the sum of both directions
}
"""The public reimplementation (docs/training.md) where it differs from the defaults of `reid.config.scgi`. L_id and
L_tri on the image embedding alone are not a setting of their own: without CFF they are the variant `cgi`."""


class _Setting(NamedTuple):
    """One alternative. fused: compare the fused mode, which is the one that the setting concerns."""

    name: str
    title: str
    changes: Mapping[str, Any]
    question: str
    fused: bool = False


_SETTINGS: Final = (
    _Setting("con_caption", "L_con on captions", {"scgi.contrast_text": "caption"}, "L_con on captions?"),
    _Setting("con_both", "L_con on prompts and captions", {"scgi.contrast_text": "both"}, "L_con on both texts?"),
    _Setting(
        "con_refined",
        "L_con, refined class token",
        {"scgi.contrast_image": "refined"},
        "L_con on refined class tokens?",
    ),
    _Setting("normalized", "CGI, normalized inputs", {"scgi.inversion_inputs": "normalized"}, "Normalize v and t?"),
    _Setting(
        "feed_norm", "CGI, norm before feed-forward", {"scgi.inversion_feed_norm": True}, "Norm before CGI's FFN?"
    ),
    _Setting(
        "kv_refined", "CFF, refined tokens", {"scgi.fusion_tokens": "refined"}, "Refined keys of CFF?", fused=True
    ),
    _Setting(
        "fused_only",
        "L_id and L_tri on fused embeddings only",
        {"scgi.supervised": "fused"},
        "L_id and L_tri on fused only?",
        fused=True,
    ),
    _Setting("prompt_dot", 'Prompts end in "person."', {"scgi.prompt_end": "person."}, "A period after the prompts?"),
    _Setting(
        "composed",
        "CLIP-SCGI, composed prompt only",
        {"scgi.fixed_prompt_ratio": 0.0},
        "CFF trained without the fixed prompt?",
        fused=True,
    ),
    _Setting("port", "As in the public port", PORT, "All choices of the public port?", fused=True),
)

VARIANTS: Final = (
    *(
        Variant(
            name=f"queries_{count}",
            title=f"CLIP-SCGI, K = {count}",
            group="queries",
            changes={"scgi.inversion_tokens": count},
        )
        for count in QUERIES
    ),
    *(
        Variant(name=f"depth_{count}", title=f"CLIP-SCGI, depth {count}", group="depth", changes={"scgi.depth": count})
        for count in DEPTHS
    ),
    *(Variant(name=each.name, title=each.title, group="settings", changes=each.changes) for each in _SETTINGS),
)

COMPARISONS: Final = (
    *(
        ask(f"K = {count} instead of 2?", f"queries_{count}", "queries_2", group="queries")
        for count in QUERIES
        if count != 2
    ),
    *(
        ask(f"Depth {count} instead of 1?", f"depth_{count}", "depth_1", group="depth")
        for count in DEPTHS
        if count != 1
    ),
    *(ask(each.question, each.name, "scgi", group="settings", fused=each.fused) for each in _SETTINGS),
)
