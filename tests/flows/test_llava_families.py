"""Every family of LLaVA captions by command line, with free and with slot-filling decoding.

`make test` has one model per kind; tests/captioning/test_families.py loads and runs all of them, in both formats.
"""

from __future__ import annotations

import pandas as pd
import pytest

from flows.cli.app import main
from tests.helpers.llava_families import save_family

pytestmark = pytest.mark.xdist_group("flow")
WORLD = ["train_identities=2", "test_identities=2", "images_per_camera=2", "cameras=2"]


@pytest.mark.parametrize(
    ("name", "older"),
    [
        ("llava_qwen2", True),
        ("llava_next_llama3", True),
        ("llava_onevision", False),
        *(
            pytest.param(name, older, marks=pytest.mark.soak)
            for name, older in (
                ("llava_vicuna", True),
                ("llava_mistral", False),
                ("llava_next_vicuna", True),
                ("llava_next_mistral", False),
                ("llava_onevision", True),
            )
        ),
    ],
)
def test_each_family_captions_by_command_line(prefect_server, tmp_path, name, older):
    folder, home = save_family(tmp_path / "llava", name, older=older), tmp_path / "home"
    settings = [f"synthetic.{setting}" for setting in WORLD]
    settings += [f"caption.model={folder}", "caption.device=cpu", "caption.dtype=float32"]
    for chosen in (["caption.decoding=free", "caption.max_new_tokens=6"], ["caption.decoding=slots"]):
        words = [word for setting in [*settings, *chosen] for word in ("--set", setting)]
        assert main(["caption", "demo", "--home", str(home), *words]) == 0
    free, slots = sorted(
        (pd.read_parquet(path) for path in home.glob("stages/caption/*/captions.parquet")),
        key=lambda table: table["conf_gender"].notna().any(),
    )
    assert len(free) == len(slots) > 0
    assert slots["conf_gender"].notna().all()
    assert set(slots["status"]) <= {"ok", "unparsed"}  # "A person." names no attribute
    assert not slots["truncated"].any()
    assert slots["raw_text"].str.contains(r"^ ?An? ").all()
