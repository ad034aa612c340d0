"""Results of the public CLIP-ReID on tools/parity_peer/world.py, and the comparison with ours."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.helpers.places import GOLDEN as GOLDEN_FOLDER
from tools.parity_peer.world import describe

GOLDEN = json.loads((GOLDEN_FOLDER / "clip_reid_parity.json").read_text())
TOLERANCE = 1e-4


def same(got: Tensor | float, golden: Any) -> None:
    """Assert that a number or a tensor agrees with its description in the golden file to 1e-4."""
    if not isinstance(golden, dict):
        np.testing.assert_allclose(float(torch.as_tensor(got).detach()), golden, rtol=TOLERANCE, atol=TOLERANCE)
        return
    ours = describe(torch.as_tensor(got))
    assert ours["shape"] == golden["shape"]
    np.testing.assert_allclose(ours["norm"], golden["norm"], rtol=TOLERANCE)
    np.testing.assert_allclose(ours["wave"], golden["wave"], atol=TOLERANCE * golden["norm"])
    np.testing.assert_allclose(ours["values"], golden["values"], rtol=TOLERANCE, atol=TOLERANCE)
