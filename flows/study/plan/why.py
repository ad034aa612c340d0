"""The group why: variants that look for the causes of the other differences."""

from __future__ import annotations

from typing import Final

from flows.study.plan.parts import Variant, ask

VARIANTS: Final = (
    Variant(name="no_con", title="CLIP-SCGI without L_con", group="why", changes={"loss.contrast_weight": 0.0}),
    Variant(name="pair_image", title="CLIP-SCGI, L_con by image", group="why", changes={"scgi.pairing": "image"}),
    Variant(
        name="clip_reid_id1",
        title="CLIP-ReID, L_id weighted as in CLIP-SCGI",
        group="why",
        method="clip_reid",
        captions="none",
        changes={"loss.id_weight": 1.0},
    ),
    Variant(
        name="baseline_id025",
        title="CLIP baseline, L_id weighted as in CLIP-ReID",
        group="why",
        method="clip_baseline",
        captions="none",
        changes={"loss.id_weight": 0.25},
    ),
    Variant(
        name="scgi_id025",
        title="CLIP-SCGI, L_id weighted as in CLIP-ReID",
        group="why",
        changes={"loss.id_weight": 0.25},
    ),
    Variant(
        name="long_baseline",
        title="CLIP baseline, twice as long",
        group="why",
        method="clip_baseline",
        captions="none",
        stretch=2,
    ),
    Variant(
        name="long_clip_reid",
        title="CLIP-ReID, twice as long",
        group="why",
        method="clip_reid",
        captions="none",
        stretch=2,
    ),
    Variant(name="long_scgi", title="CLIP-SCGI, twice as long", group="why", stretch=2),
)

COMPARISONS: Final = (
    ask("What does L_con add?", "scgi", "no_con", group="why"),
    ask("Pairs by identity or by image?", "scgi", "pair_image", group="why"),
    ask("Does a larger L_id help CLIP-ReID?", "clip_reid_id1", "clip_reid", group="why"),
    ask("Does a smaller L_id help the baseline?", "baseline_id025", "baseline", group="why"),
    ask("Does a smaller L_id help CLIP-SCGI?", "scgi_id025", "scgi", group="why"),
    ask("After twice the training?", "long_scgi", "long_clip_reid", group="why"),
    ask("Twice as long, over baseline?", "long_scgi", "long_baseline", group="why"),
)
