"""Loading of the two models: each must need the memory of its weights once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import torch
from checks.part import Check
from checks.rows import Outcome

from captioning.config import CaptionConfig
from captioning.engines.llava import Engine
from rehearsal.material import CLIP, LLAVA, weight_bytes, write_clip, write_llava, write_trees
from rehearsal.memory import GIB, own_memory, peak_of, resident
from reid.config.published import published_training
from reid.models.backbone import build_backbone
from reid.tasks.build import build_task

HELD = 1.5
"""Largest ratio of the memory that a model adds to the size of its file. Weights held twice would be above 2.

While loading, anonymous pages count; after it, the pages of the mapped file too, which may be all that a model needs.
"""
_LONG = "a person wearing " + "a red coat and a blue scarf, " * 20


class Loading:
    """The checks of the material and of one model. Each has a process of its own, whose memory nothing else has used.

    kind: material, llava or vit_b16.
    """

    def __init__(self, work: Path, kind: str) -> None:
        self.work, self.kind = work, kind

    def checks(self) -> list[Check]:
        """Return the checks."""
        once = f"while and after loading <= {HELD:g} x the file"
        kinds = {
            "material": [Check(name="trees and weights", want="written", work=self.write, seconds=0)],
            "llava": [Check(name="loads once", want=once, work=self.llava, seconds=0)],
            "vit_b16": [
                Check(name="loads once", want=once, work=self.clip, seconds=0),
                Check(name="77 tokens", want="finite feature of 512", work=self.long_text, seconds=0),
            ],
        }
        return kinds[self.kind]

    def write(self) -> Outcome:
        """Write trees and weights into the work folder."""
        with peak_of(own_memory) as peak:
            images = write_trees(self.work)
            write_clip(self.work)
            write_llava(self.work)
            gc.collect()
        sizes = {name: weight_bytes(self.work, name) / GIB for name in (LLAVA, CLIP)}
        return Outcome(
            got=f"{images} images; {', '.join(f'{name} {size:.2f} GiB' for name, size in sizes.items())}",
            passed=True,
            figures={**sizes, "peak": peak.bytes / GIB},
        )

    def llava(self) -> Outcome:
        """Load the captioner as the caption stage does, trial image included."""
        return self._held(LLAVA, lambda: Engine.load(CaptionConfig(model=LLAVA, device="cpu")))

    def clip(self) -> Outcome:
        """Build CLIP-SCGI's task as the train stage does."""
        config = published_training("clip_scgi")
        return self._held(CLIP, lambda: build_task(config, identities=1041))

    def long_text(self) -> Outcome:
        """Encode a caption that is longer than CLIP's context."""
        backbone = build_backbone(published_training("clip_scgi").backbone).eval()
        ids, _ = backbone.token_ids([_LONG])
        with torch.inference_mode():
            feature = backbone.text([_LONG])
        good = ids.shape == (1, 77) and feature.shape == (1, 512) and bool(feature.isfinite().all())
        return Outcome(got=f"ids {list(ids.shape)}, feature {list(feature.shape)}", passed=good)

    def _held(self, repository: str, load: Callable[[], object]) -> Outcome:
        gc.collect()
        before, mapped_before = own_memory(), resident()
        with peak_of(own_memory) as peak:
            model = load()
        size, added, kept = weight_bytes(self.work, repository), peak.bytes - before, resident() - mapped_before
        del model
        return Outcome(
            got=f"file {size / GIB:.2f} GiB, while loading {added / GIB:.2f} GiB, after it {kept / GIB:.2f} GiB",
            passed=max(added, kept) <= HELD * size,
            figures={"file": size / GIB, "loading": added / GIB, "after": kept / GIB},
        )
