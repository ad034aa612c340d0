"""The costs in docs/scaling.md are what the script prints."""

from __future__ import annotations

import scale_costs

from tests.helpers.places import REPO


def test_the_page_has_the_table():
    page = (REPO / "docs" / "scaling.md").read_text()
    for row in scale_costs.table(list(scale_costs.SIZES)).splitlines():
        if ".parquet" not in row:  # its bytes depend on the version of pyarrow
            assert row in page


def test_values_are_products():
    (hours,) = [line for line in scale_costs.lines() if line.what == "captions, measured rate"]
    assert hours.cells(4_000_000) == "15.1"
    assert float(hours.cells(100_000_000)) == round(1e8 / 73.4 / 3600)
