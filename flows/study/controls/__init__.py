"""The controls of a study: captions that were not written for their image, or that say exactly what it shows.

`ShuffleStage` gives every training image a caption of another identity, `FixedStage` the same text to all of them: any
remaining gain does not come from the content of the captions. `TrueStage` writes exactly what is visible in a synthetic
image. All are pure functions of their inputs and write captions.parquet like the caption stage.
"""

from flows.study.controls.fixed import CONSTANT, FixedStage
from flows.study.controls.shuffle import ShuffleConfig, ShuffleStage, exchange
from flows.study.controls.truth import TRUTH, TrueStage, read_truth

__all__ = ["CONSTANT", "TRUTH", "FixedStage", "ShuffleConfig", "ShuffleStage", "TrueStage", "exchange", "read_truth"]
