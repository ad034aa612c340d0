"""Features of the test images in parts, which several workers encode and the evaluation puts together.

A part has whole batches, as one process forms them, so its features are those of one process to the bit.

Shapes: N test images, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.process.parts import Parts, slices
from data.progress import ProgressFn

Float32s = NDArray[np.float32]


class FeatureParts:
    """Parts in `folder` for `rows` images and `models` models, in batches of `batch` images.

    The folder of another batch size is another one, because it has other parts.
    """

    def __init__(self, folder: Path, *, rows: int, models: int, batch: int) -> None:
        self.rows = rows
        self.slices = slices(rows, batch)
        self._parts = Parts(folder / f"{rows}-{batch}", models * len(self.slices))

    def missing(self) -> list[int]:
        """Return the numbers of the parts that do not exist yet."""
        return self._parts.missing()

    def work(self, encode: Callable[[int, slice], Mapping[str, Float32s]], progress: ProgressFn) -> int:
        """Encode the parts that no other worker encodes, until all exist; return the number of images encoded here.

        encode: (number of the model, rows) -> mode -> features.
        """
        done, per_model = 0, len(self.slices)

        def compute(number: int) -> Mapping[str, Float32s]:
            nonlocal done
            rows = self.slices[number % per_model]
            found = encode(number // per_model, rows)
            done += rows.stop - rows.start
            return found

        def report(parts: int, all_parts: int, note: str) -> None:
            step = all_parts // per_model * self.rows  # images of all models
            progress(step * parts // all_parts, step, note)

        self._parts.work(compute, report)
        return done

    def collect(self, model: int, folder: Path, name: str) -> Iterator[tuple[str, Float32s]]:
        """Yield each mode of model number `model` with its features, [N, D], written to `folder`/`name`-MODE.npy."""
        first = model * len(self.slices)
        found: dict[str, Float32s] = {}
        for number, rows in enumerate(self.slices, start=first):
            for mode, features in self._parts.read(number).items():
                if mode not in found:
                    shape = (self.rows, features.shape[1])
                    file = folder / f"{name}-{mode}.npy"
                    found[mode] = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
                found[mode][rows] = features
        yield from found.items()
