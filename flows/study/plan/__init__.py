"""Plan of a study: methods and their controls, as frozen data.

Variants of one seed train for the same number of steps, at the same learning rates, on the same batches with the same
augmentation, so a difference between two of them comes from their changes alone.
"""

from flows.study.plan.catalogue import COMPARISONS, VARIANTS, variants_of
from flows.study.plan.parts import FUSED, GROUPS, IMAGE, Captions, Comparison, Group, Metric, StudyConfig, Variant
from flows.study.plan.presets import PRESETS, Preset

__all__ = [
    "COMPARISONS",
    "FUSED",
    "GROUPS",
    "IMAGE",
    "PRESETS",
    "VARIANTS",
    "Captions",
    "Comparison",
    "Group",
    "Metric",
    "Preset",
    "StudyConfig",
    "Variant",
    "variants_of",
]
