"""Two runs compared over the same queries."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from data.errors import ClipScgiError, ConfigError
from flows.comparison.compare import Comparison, Difference, QueryPair, compare
from flows.comparison.runs import find_run
from flows.comparison.text import described, notices_of, text_title
from flows.report.scores import interval_text, signed
from flows.ui.content.library import Run
from flows.ui.content.rankings import Query
from flows.ui.routes.queries import Searched, searched
from flows.ui.site import Site

_MOST: Final = 8
"""Comparisons that stay in memory; one takes seconds for thousands of identities."""
_QUERIES: Final = 10
_LISTED: Final = 8

Chosen = tuple[str, str, str]
"""Fingerprint, model and mode of one side."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One run's ranking of a query. name: A, the baseline, or B."""

    name: str
    what: Searched
    query: Query


@dataclass(frozen=True, kw_only=True)
class ShownPair:
    """One query in both runs."""

    pair: QueryPair
    sides: tuple[Side, Side]


class Comparisons:
    """The comparisons that were asked for last."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, ...], Comparison] = OrderedDict()

    def get(self, runs: tuple[Run, Run], sides: tuple[Chosen, Chosen]) -> Comparison:
        """Return the comparison of two rows, the baseline first. Raises ConfigError if they cannot be compared."""
        key = (*sides[0], *sides[1], *(run.entry.content for run in runs))
        with self._lock:
            if key not in self._kept:
                store = self._site.store
                read = [find_run(run.entry.folder, store) for run in runs]
                found = [replace(run, name=run.key) for run in read]  # messages name runs, not folders
                models, modes = [side[1] for side in sides], [side[2] for side in sides]
                self._kept[key] = compare(found, store, models=models, modes=modes)
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
            return self._kept[key]


def add_routes(app: FastAPI, site: Site) -> None:
    """Add the address of the page."""
    comparisons = Comparisons(site)

    @app.get("/compare")
    def two(request: Request) -> Response:
        return _page(site, comparisons, request)


def _page(site: Site, comparisons: Comparisons, request: Request) -> Response:
    runs = site.library.snapshot().runs
    options = [_option(run, score.model, score.mode) for run in runs for score in run.scores]
    chosen = _chosen(request.query_params, options)
    comparison, problem, lists = None, "", []
    if all(chosen) and "b" in request.query_params:
        try:
            sides = (_side(chosen[0]), _side(chosen[1]))
            comparison = comparisons.get((site.library.run(sides[0][0]), site.library.run(sides[1][0])), sides)
            lists = _lists(site, comparison.differences[0], sides)
        except ClipScgiError as error:
            problem = str(error).removeprefix("compare: ")
    return site.page(
        request,
        "compare.html.j2",
        options=options,
        comparable=_usual_pair(options) is not None,
        chosen=chosen,
        comparison=comparison,
        difference=comparison.differences[0] if comparison else None,
        described=[described(row) for row in comparison.rows] if comparison else [],
        notices=notices_of(comparison.differences[0], "B") if comparison else [],
        lists=lists,
        problem=problem,
        signed=signed,
        text_title=text_title,
        interval=interval_text,
    )


class Option(NamedTuple):
    """One row of one run, as the form offers it. value: of the form. tested: digest of the test images."""

    value: str
    text: str
    tested: str


def _option(run: Run, model: str, mode: str) -> Option:
    made = f"{run.entry.created.astimezone():%Y-%m-%d %H:%M}"
    return Option(
        f"{run.key} {model} {mode}",
        f"{run.name}: {model}, {mode}, {made} ({run.key[:8]})",
        str(run.protocol.get("test_hash", "")),
    )


def _chosen(query: Mapping[str, str], options: list[Option]) -> tuple[str, str]:
    """Return the two chosen rows; by default a pair of the same test images, "" without any."""
    defaults = _usual_pair(options) or ("", "")
    found = query.get("a") or defaults[0], query.get("b") or defaults[1]
    known = {"", *(option.value for option in options)}
    wrong = next((value for value in found if value not in known), None)
    if wrong is not None:
        raise ConfigError(f"The run {wrong[:60]!r} does not exist; choose one from the list.")
    return found


def _usual_pair(options: list[Option]) -> tuple[str, str] | None:
    """Return two rows of the same test images, the newer one second: trained models in image mode, if possible."""
    usual = [option for option in options if option.value.endswith(" trained image")]
    others = [option for option in options if option not in usual]
    for newer, older in ((usual, usual), (usual, others), (others, others)):
        for number, option in enumerate(newer):
            rest = older[number + 1 :] if older is newer else older
            pair = next((other for other in rest if other.tested == option.tested), None)
            if pair is not None:
                return pair.value, option.value
    return None


def _side(value: str) -> Chosen:
    key, model, mode = value.split(" ")
    return key, model, mode


def _lists(site: Site, difference: Difference, sides: tuple[Chosen, Chosen]) -> list[tuple[str, int, list[ShownPair]]]:
    """Return title, number of queries and the shown ones, of those that B won and of those that it lost."""
    tally = difference.metrics[0].tally
    whats = [searched(site, key, {"model": model, "mode": mode}) for key, model, mode in sides]
    numbers = [what.rankings.numbers_of(what.model, what.mode) for what in whats]

    def shown(pair: QueryPair) -> ShownPair:
        found = [
            Side(name=name, what=what, query=what.rankings.query(places[path], _LISTED))
            for name, what, places, path in zip("AB", whats, numbers, (pair.baseline_path, pair.path), strict=True)
        ]
        return ShownPair(pair=pair, sides=(found[0], found[1]))

    won, lost = difference.most_won(_QUERIES), difference.most_lost(_QUERIES)
    return [
        ("Won most by B", tally.won, [shown(pair) for pair in won]),
        ("Lost most by B", tally.lost, [shown(pair) for pair in lost]),
    ]
