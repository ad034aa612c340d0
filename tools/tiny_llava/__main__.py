"""Train and evaluate the embedded default captioner.

    python -m tools.tiny_llava train --out DIR --minutes 50 --threads 2
    python -m tools.tiny_llava train --out DIR --minutes 8 --start captioning/weights/tiny_llava --image-tokens body
    python -m tools.tiny_llava measure --images 2000
    python -m tools.tiny_llava compare

`train` uses people of the synthetic stream, whose identities are in no written world; `measure` captions an unseen
world with the real captioning engine and compares the parsed captions with the true attributes; `compare` does so for
several decodings, framings and image tokens, and measures the calibration of the confidences.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from captioning.captioner import TINY_FOLDER
from captioning.config import TINY, CaptionConfig
from data.files import read_json
from tools.tiny_llava.compare import compare
from tools.tiny_llava.measure import measure, table, write_card
from tools.tiny_llava.train import Plan, Training, TrainingFacts


def main(argv: list[str] | None = None) -> None:
    """Run one command."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.command == "train":
        plan = Plan(
            folder=args.out,
            pool=args.pool or args.out / "pool",
            minutes=args.minutes,
            seed=args.seed,
            capacity=args.people,
            workers=args.workers,
            start=args.start,
            image_tokens=args.image_tokens,
        )
        Training(plan).run()
        return
    model = str(args.weights or TINY)
    if args.command == "compare":
        for text in compare(args.images, model):
            sys.stdout.write(f"{text}\n\n")
        return
    config = CaptionConfig(
        model=model, dtype="float32", decoding=args.decoding, framing=args.framing, image_tokens=args.image_tokens
    )
    scores, frame = measure(config, args.images)
    sys.stdout.write(f"{table(scores)}\n")
    if args.card:
        facts = {"images": args.images, **_facts(read_json(args.training), args.weights or TINY_FOLDER)}
        write_card(args.card, scores, frame, facts)


def _facts(training: TrainingFacts, weights: Path) -> dict[str, object]:
    """Return the facts about the training for the model card."""
    with safe_open(weights / "model.safetensors", "pt") as tensors:
        parameters = sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118 - not a mapping
    steps = ", ".join(f"{name} {count}" for name, count in training["steps"].items())
    return {
        "parameters": parameters / 1e6,
        "command": f"python -m tools.tiny_llava train --out DIR --minutes {training['minutes']:g}",
        "made": f"Steps of {training['batch']} images: {steps}; {training['minutes']:g} minutes on two cores shared "
        f"with other work. The images are augmented samples from a pool of {training['people']}.",
        "seed": training["seed"],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_llava", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train from scratch, or resume from the checkpoint in --out")
    train.add_argument(
        "--out", type=Path, required=True, help="folder of the checkpoint; the model is written to OUT/final"
    )
    train.add_argument("--pool", type=Path, help="folder of the rendered images (default OUT/pool, 1.5 GB)")
    train.add_argument("--minutes", type=float, default=50.0, help="time budget of the training steps")
    train.add_argument("--people", type=int, default=60_000, help="images in the pool")
    train.add_argument("--workers", type=int, default=1, help="processes that render images")
    train.add_argument("--start", type=Path, help="folder of a finished model, to train its captions further")
    train.add_argument("--seed", type=int, default=20_260_000, help="seed of people, weights and augmentation")
    score = commands.add_parser("measure", help="accuracy per slot on unseen people")
    score.add_argument("--images", type=int, default=2000, help="approximate number of images to caption")
    score.add_argument("--weights", type=Path, help="a model folder (default: the embedded model)")
    score.add_argument("--decoding", choices=["free", "slots"], default="free", help="how to write captions")
    score.add_argument("--framing", choices=["pad", "stretch", "center_crop"], default="pad", help="how to frame crops")
    score.add_argument("--card", type=Path, help="file of the model card to write")
    score.add_argument("--training", type=Path, help="training.json of the run, for the card")
    side = commands.add_parser("compare", help="accuracy by decoding and framing, and calibration, on unseen people")
    side.add_argument("--images", type=int, default=1500, help="approximate number of images to caption per setting")
    side.add_argument("--weights", type=Path, help="a model folder (default: the embedded model)")
    for command in (train, score):
        command.add_argument(
            "--image-tokens", choices=["all", "body", "body_only"], default="all", help="as caption.image_tokens"
        )
    for command in (train, score, side):
        command.add_argument("--threads", type=int, default=2, help="torch threads")
    return parser


if __name__ == "__main__":
    main()
