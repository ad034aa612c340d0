"""Make and measure the tiny CLIP that ships with the package.

python -m tools.tiny_clip train --out DIR --minutes 15 --threads 1 --seed 0
python -m tools.tiny_clip measure --weights DIR
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from data.files import read_json, write_json
from data.synthetic.world import WorldConfig
from reid.models.backbone import Backbone, build_clip, load_clip
from reid.models.pretrained import TINY_CONFIG, TINY_FOLDER, TINY_TOKENIZER, TINY_WEIGHTS
from reid.models.tokens import BpeTokenizer
from tools.tiny_clip.measure import measure, reid_scores, write_card
from tools.tiny_clip.train import HEIGHT, STREAM_SEED, WIDTH, TinyRun, steps_within, train

_HISTORY = "training.json"


def load_tiny(folder: Path) -> Backbone:
    """Load a tiny CLIP from a folder that `train` wrote."""
    clip = build_clip(read_json(folder / TINY_CONFIG)["clip"], HEIGHT, WIDTH)
    state = {name: value.float() for name, value in load_file(folder / TINY_WEIGHTS).items()}
    load_clip(clip, state, str(folder / TINY_WEIGHTS), clip.visual.grid_size)
    return Backbone(clip, BpeTokenizer(folder / TINY_TOKENIZER), is_resnet=False)


def _train(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.out
    run = TinyRun(steps=arguments.steps or 1, seed=arguments.seed, batch=arguments.batch)
    if not arguments.steps:
        run = replace(run, steps=steps_within(folder, run, arguments.minutes))
    outcome = train(folder, run)
    command = f"python -m tools.tiny_clip train --out DIR --steps {run.steps} --batch {run.batch} --threads 1"
    command += f" --seed {run.seed}"
    history = {"command": command, "steps": run.steps, "batch": run.batch, "seed": run.seed}
    write_json(folder / _HISTORY, {**history, "stream_seed": STREAM_SEED + run.seed, **outcome})


def _measure(arguments: argparse.Namespace) -> None:
    model = load_tiny(arguments.weights).eval()
    figures = measure(model)
    figures["reid"] = reid_scores(model, WorldConfig(seed=90_001, train_identities=0, test_identities=30))
    write_card(arguments.weights, figures, read_json(arguments.weights / _HISTORY))
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_clip", description=__doc__)
    verbs = parser.add_subparsers(required=True)
    make = verbs.add_parser("train", help="train on the synthetic stream and write weights, shape and tokenizer")
    make.add_argument("--out", type=Path, required=True, help="output folder")
    make.add_argument("--minutes", type=float, default=15, help="training time; a few steps are timed first")
    make.add_argument("--steps", type=int, default=0, help="number of steps, instead of --minutes")
    make.add_argument("--batch", type=int, default=TinyRun.batch, help="images per step, at least 24")
    make.add_argument("--seed", type=int, default=0)
    make.set_defaults(run=_train)
    evaluate = verbs.add_parser("measure", help="measure on unseen people and write the model card")
    evaluate.add_argument("--weights", type=Path, default=TINY_FOLDER, help="output folder of train")
    evaluate.set_defaults(run=_measure)
    for verb in (make, evaluate):
        verb.add_argument("--threads", type=int, default=1, help="processor threads")
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(parsed.threads)
    parsed.run(parsed)


if __name__ == "__main__":
    main()
