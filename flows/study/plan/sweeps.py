"""The groups queries and depth, and the group settings: alternatives to the defaults of CLIP-SCGI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from flows.study.plan.parts import Variant, ask

QUERIES: Final = (1, 2, 4, 8)
DEPTHS: Final = (1, 2, 3, 4, 5, 6)


class _Setting(NamedTuple):
    """One alternative. fused: compare the fused mode, which is the one that the setting concerns."""

    name: str
    title: str
    changes: Mapping[str, Any]
    question: str
    fused: bool = False


_SETTINGS: Final = (
    _Setting(
        "composed",
        "CLIP-SCGI, composed prompt only",
        {"scgi.fixed_prompt_ratio": 0.0},
        "Train CFF with the composed prompt only?",
        fused=True,
    ),
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
