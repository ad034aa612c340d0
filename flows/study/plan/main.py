"""The group main: the methods, the controls of their captions, and the questions between them."""

from __future__ import annotations

from typing import Final

from flows.study.plan.parts import FUSED, IMAGE, Comparison, Variant, ask

UNTRAINED: Final = "untrained"
"""The CLIP from which the baseline starts: evaluated with it, not trained."""
ORACLES: Final = {"baseline": "oracle_baseline", "scgi": "oracle_scgi"}
"""Variant -> its oracle: its ranking in image mode if the true attributes of all test images were known."""

VARIANTS: Final = (
    Variant(name="baseline", title="CLIP baseline", method="clip_baseline", captions="none"),
    Variant(name="clip_reid", title="CLIP-ReID", method="clip_reid", captions="none"),
    Variant(name="cgi", title="CLIP-SCGI, CGI only", changes={"scgi.cff": False}),
    Variant(name="cff", title="CLIP-SCGI, CFF only", changes={"scgi.cgi": False}),
    Variant(name="scgi", title="CLIP-SCGI"),
    Variant(name="shuffled", title="CLIP-SCGI, other people's captions", captions="shuffled"),
    Variant(name="scattered", title="CLIP-SCGI, anybody's captions", captions="scattered"),
    Variant(name="constant", title="CLIP-SCGI, one caption for all", captions="constant"),
    Variant(name="empty", title="CLIP-SCGI, empty captions", captions="empty"),
    Variant(name="true", title="CLIP-SCGI, true attributes", captions="true"),
)

COMPARISONS: Final = (
    ask("What could captions add at most?", "oracle_baseline", "baseline"),
    ask("What could they add to CLIP-SCGI at most?", "oracle_scgi", "scgi"),
    ask("What do learned prompts add?", "clip_reid", "baseline", planned=True),
    ask("What does CLIP-SCGI add?", "scgi", "baseline", planned=True),
    ask("Does it beat CLIP-ReID?", "scgi", "clip_reid", planned=True),
    Comparison(question="Does its fused mode beat CLIP-ReID?", left=("scgi", FUSED), right=("clip_reid", IMAGE)),
    Comparison(question="What does fused inference add?", left=("scgi", FUSED), right=("scgi", IMAGE), planned=True),
    ask("What does CFF add to CGI?", "scgi", "cgi"),
    ask("What does CGI add to CFF?", "scgi", "cff"),
    ask("What does CGI add to CFF, fused?", "scgi", "cff", fused=True),
    ask("Do captions matter?", "scgi", "shuffled", planned=True),
    ask("Do captions matter, fused?", "scgi", "shuffled", fused=True, planned=True),
    ask("Do captions matter, against one for all?", "scgi", "constant", planned=True),
    ask("Do captions matter, against empty ones?", "scgi", "empty", planned=True),
    ask("What do wrong captions add?", "shuffled", "baseline"),
    ask("Must captions of one person agree?", "shuffled", "scattered"),
    ask("What would perfect captions add?", "true", "scgi"),
    ask("What would perfect captions add, fused?", "true", "scgi", fused=True),
    ask("Do perfect captions matter?", "true", "shuffled", planned=True),
    ask("Does the baseline keep search by sentence?", "baseline", UNTRAINED, metric="t2i_mAP"),
    ask("Does CLIP-SCGI keep search by sentence?", "scgi", UNTRAINED, metric="t2i_mAP", planned=True),
    ask("Do captions matter to search by sentence?", "scgi", "shuffled", metric="t2i_mAP", planned=True),
)
