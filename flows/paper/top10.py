"""The top ten of two methods on one set of queries, which a rule chooses: gains, losses and a random sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import numpy as np
from PIL import Image
from pydantic import Field

from captioning.audit.pen import Pen, missing_notice
from data.artifacts.store import ArtifactStore
from data.config import Config
from data.errors import counted
from data.files import atomic_path, write_text
from data.people import UNKNOWN_CAMERA
from flows.comparison.albums import RANKS, ShownQuery, Side, album_of, shown_queries
from flows.comparison.compare import Comparison, Difference, QueryPair
from flows.comparison.text import described, letter, notices_of
from flows.paper.drawing import INK, LINE, MARGIN, SCALE, SOFT, frame, lines_of, mark, pen_on, picture, write_lines
from flows.report.page import page_environment
from flows.report.scores import interval_text, signed

PAGE, PICTURE = "top10.html", "top10.png"
_IMAGE: Final = (68 * SCALE, 136 * SCALE)  # width and height of an image in pixels
_GAP: Final = 8 * SCALE
_STEP: Final = _IMAGE[0] + _GAP
_PROBE: Final = 220 * SCALE  # width of the column of the query
_SIDE: Final = 92 * SCALE  # width of the column with the method and its score
_TITLE: Final = 36 * SCALE  # height of the title of a part
_BAND: Final = _IMAGE[1] + LINE + _GAP  # height of one ranking
_QUERY: Final = 2 * _BAND + 2 * _GAP  # height of one query


class Top10Config(Config):
    """How many queries are shown, and the seed of the random ones."""

    each: Annotated[int, Field(ge=0, le=50)] = 3
    """Queries with the largest gains, and as many with the largest losses."""
    sample: Annotated[int, Field(ge=0, le=50)] = 3
    """Queries drawn at random from all others."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random draw."""


class Choice(NamedTuple):
    """Queries that were chosen for one reason."""

    title: str
    pairs: Sequence[QueryPair]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A choice with its images."""

    title: str
    queries: Sequence[ShownQuery]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Everything that the page and the picture show.

    runs: the letter of each method and what it is. scores: mAP and R1 of both. problems: why images are not shown.
    """

    dataset: str
    runs: Sequence[tuple[str, str]]
    scores: Sequence[str]
    rule: str
    notices: Sequence[str]
    problems: Sequence[str]
    parts: Sequence[Part]


def choose(difference: Difference, config: Top10Config) -> list[Choice]:
    """Return the queries to show, none of them twice: the largest gains, the largest losses, and a random sample."""
    won, lost = difference.most_won(config.each), difference.most_lost(config.each)
    shown = {pair.path for pair in (*won, *lost)}
    others = sorted((pair for pair in difference.queries if pair.path not in shown), key=lambda pair: pair.path)
    drawn = np.random.default_rng(config.seed).permutation(len(others))[: config.sample]
    tally, name = difference.metrics[0].tally, letter(1)
    return [
        Choice(f"Largest gains of {name}: {len(won)} of {counted(tally.won, 'query')} won", won),
        Choice(f"Largest losses of {name}: {len(lost)} of {counted(tally.lost, 'query')} lost", lost),
        Choice(
            f"Random sample: {len(drawn)} of the {counted(len(others), 'other query')} (seed {config.seed})",
            [others[at] for at in sorted(drawn.tolist())],
        ),
    ]


def figure(comparison: Comparison, store: ArtifactStore, config: Top10Config, images: Path | None = None) -> Figure:
    """Return the figure of a comparison of two evaluations.

    images: the folder of the images; by default, where they were when they were indexed.
    """
    baseline, (difference,) = comparison.baseline, comparison.differences
    albums = {ranked.run.folder: album_of(ranked.run, store, images) for ranked in comparison.rows}
    name = letter(1)
    return Figure(
        dataset=baseline.run.dataset,
        runs=[(letter(at), described(ranked)) for at, ranked in enumerate(comparison.rows)],
        scores=[_score(difference, key) for key in ("mAP", "rank1")],
        rule=_rule(config),
        notices=notices_of(difference, name),
        problems=list(dict.fromkeys(album.problem for album in albums.values() if album.problem)),
        parts=[
            Part(
                title=title,
                queries=shown_queries(baseline, difference.ranked, pairs, name, albums, first_match=False),
            )
            for title, pairs in choose(difference, config)
        ],
    )


def _rule(config: Top10Config) -> str:
    a, b, each = letter(0), letter(1), config.each
    return (
        f"The queries are chosen by a rule: the {each} whose average precision (AP) rises most from {a} to {b}, the "
        f"{each} whose AP falls most, and {config.sample} drawn at random from all others with seed {config.seed}."
    )


def _score(difference: Difference, key: str) -> str:
    metric = next(metric for metric in difference.metrics if metric.key == key)
    interval = f" {interval_text(metric.interval)}" if metric.interval else ""
    return (
        f"{metric.label}: {letter(0)} {metric.baseline:.1f}, {letter(1)} {metric.run:.1f}, "
        f"{signed(metric.points)} points{interval}"
    )


def write_figure(folder: Path, shown: Figure) -> tuple[list[Path], list[str]]:
    """Write the figure as a page and as a picture; return their paths, and notices about both."""
    page = page_environment().get_template("paper/top10.html.j2").render(figure=shown, ranks=RANKS)
    write_text(folder / PAGE, page)
    sheet, missing = draw(shown)
    with atomic_path(folder / PICTURE) as temporary:
        sheet.save(temporary, "PNG")
    told = [f"{missing_notice(missing, PICTURE)}; {PAGE} shows them"] if missing else []
    return [folder / PAGE, folder / PICTURE], [*shown.problems, *shown.notices, *told]


def draw(shown: Figure) -> tuple[Image.Image, set[str]]:
    """Return a row of ten images per query and method as a picture, and the characters that no font has."""
    width = 2 * MARGIN + _PROBE + _SIDE + RANKS * _STEP
    head, missing = _head(shown, width)
    height = head.height + sum(_part_height(part) for part in shown.parts) + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    sheet.paste(head, (0, 0))
    top, pen, title = head.height, pen_on(sheet), pen_on(sheet, "title")
    for part in shown.parts:
        title.write(MARGIN, top + _GAP, part.title.split(), INK)
        for number, query in enumerate(part.queries):
            _draw_query(sheet, pen, query, top + _TITLE + number * _QUERY)
            for at, side in enumerate(query.sides):
                title.write(MARGIN + _PROBE, top + _TITLE + number * _QUERY + at * _BAND, [side.name], INK)
        top += _part_height(part)
    return sheet, missing | pen.missing | title.missing


def _part_height(part: Part) -> int:
    return _TITLE + _QUERY * len(part.queries)


def _head(shown: Figure, width: int) -> tuple[Image.Image, set[str]]:
    """Return the lines above the queries (methods, scores, rule, signs), and the characters that no font has."""
    texts = [(f"{name}: {text}", INK) for name, text in shown.runs]
    texts += [("; ".join(shown.scores), INK), (shown.rule, SOFT)]
    texts += [("Solid frame and ✓: same identity. Dashed frame and ✗: another identity.", SOFT)]
    texts += [(text, SOFT) for text in (*shown.notices, *shown.problems)]
    measure = pen_on(Image.new("RGB", (1, 1)))
    lines = [line for text, ink in texts for line in lines_of(measure, text, width - 2 * MARGIN, ink)]
    first = MARGIN + LINE + _GAP
    image = Image.new("RGB", (width, first + LINE * len(lines) + _GAP), "white")
    pen, title = pen_on(image), pen_on(image, "title")
    title.write(MARGIN, MARGIN, f"Top {RANKS} on {shown.dataset}".split(), INK)
    write_lines(pen, MARGIN, first, lines)
    return image, pen.missing | title.missing


def _draw_query(sheet: Image.Image, pen: Pen, query: ShownQuery, top: int) -> None:
    probe = picture(query.image, *_IMAGE)
    frame(probe, right=None)
    sheet.paste(probe, (MARGIN, top))
    beside = MARGIN + _IMAGE[0] + _GAP
    lines = [
        (f"{signed(query.gain)} points AP".split(), INK),
        *lines_of(pen, f"identity {query.identity}", MARGIN + _PROBE - beside - _GAP, SOFT, limit=60),
        (f"camera {_camera(query.camid)}".split(), SOFT),
    ]
    write_lines(pen, beside, top, lines)
    write_lines(pen, MARGIN, top + _IMAGE[1] + _GAP // 2, lines_of(pen, query.path, _PROBE - _GAP, SOFT, limit=120))
    for number, side in enumerate(query.sides):
        _draw_side(sheet, pen, side, top + number * _BAND)


def _draw_side(sheet: Image.Image, pen: Pen, side: Side, top: int) -> None:
    left = MARGIN + _PROBE
    lines = (f"AP {100 * side.ap:.1f} %", "first match:", f"rank {side.first_hit:,}")
    write_lines(pen, left, top + LINE + _GAP, [(line.split(), SOFT) for line in lines])
    for at, hit in enumerate(side.hits):
        image = picture(hit.image, *_IMAGE)
        frame(image, right=hit.right)
        mark(image, right=hit.right)
        sheet.paste(image, (left + _SIDE + at * _STEP, top))
        below = [str(hit.rank), "·", f"{hit.score:.3f}"]
        pen.write(left + _SIDE + at * _STEP, top + _IMAGE[1] + SCALE, below, SOFT)


def _camera(camid: int) -> str:
    return "unknown" if camid == UNKNOWN_CAMERA else str(camid)
