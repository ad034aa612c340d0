"""Train and measure the embedded default captioner.

    python -m captioning.tiny_llava train --out DIR --minutes 50 --threads 2
    python -m captioning.tiny_llava measure --images 2000

`train` draws its people from the synthetic stream, whose identities no written world holds; `measure` captions an
unseen world through the real captioning engine and compares `parse_caption` of every text with the true attributes.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from captioning.tiny_llava_train import Plan, Training


def main(argv: list[str] | None = None) -> None:
    """Run one of the two commands."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.command == "train":
        plan = Plan(
            folder=args.out,
            pool=args.pool or args.out / "pool",
            minutes=args.minutes,
            share=args.share,
            seed=args.seed,
            capacity=args.people,
            workers=args.workers,
        )
        Training(plan).run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m captioning.tiny_llava", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train from nothing, or go on from the checkpoint in --out")
    train.add_argument("--out", type=Path, required=True, help="folder of the checkpoint; the result goes to OUT/final")
    train.add_argument("--pool", type=Path, help="folder of the drawn images (default OUT/pool, 1.5 GB)")
    train.add_argument("--minutes", type=float, default=50.0, help="time budget of the training steps")
    train.add_argument("--share", type=float, default=0.55, help="part of the budget for the vision tower alone")
    train.add_argument("--people", type=int, default=60_000, help="images in the pool")
    train.add_argument("--workers", type=int, default=1, help="processes that draw images")
    train.add_argument("--seed", type=int, default=20_260_000, help="seed of stream, weights and augmentation")
    train.add_argument("--threads", type=int, default=2, help="torch threads")
    return parser


if __name__ == "__main__":
    main()
