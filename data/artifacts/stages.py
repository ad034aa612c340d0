"""Names of the stages of the pipeline, which are also the names of their folders in the artifact store."""

from __future__ import annotations

from typing import Final, Literal, get_args

StageName = Literal["index", "caption", "audit", "train", "evaluate", "report"]
STAGES: Final[tuple[StageName, ...]] = get_args(StageName)
"""The stages in the order of the DAG."""
