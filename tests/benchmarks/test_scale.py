"""The worlds of the benchmarks of scale: their made-up datasets can be indexed at any size."""

from __future__ import annotations

from pathlib import Path

import bench_embed_rows
import bench_listing
import bench_rows
import bench_scale
import pytest
from steps import Measured, line_of, print_slopes

from data.sources import client
from data.sources.listing import Entry, list_objects


@pytest.mark.parametrize("rows", [1000, 1234])
def test_the_listed_images_are_a_dataset(tmp_path, rows):
    index = bench_scale.write_world(tmp_path / "home", rows, 0.6, files=True)
    bench_scale.first_index(str(tmp_path / "home"), index.to_json())
    bench_scale.changed_index(str(tmp_path / "home"), index.to_json())


def test_a_cached_run_finds_the_made_up_artifacts(tmp_path):
    index = bench_scale.write_world(tmp_path / "home", 1000, 0.6, files=False)
    for step in ("captions", "audit", "rankings", "finished", "cached run", "report", "page"):
        bench_rows.STEPS[step](str(tmp_path / "home"), index.to_json())


def test_captions_are_imported_applied_and_exported(tmp_path):
    index = bench_scale.write_world(tmp_path / "home", 1000, 0.6, files=False)
    for step in ("captions", "import", "corrected", "export"):
        bench_rows.STEPS[step](str(tmp_path / "home"), index.to_json())


def test_made_up_images_are_embedded_and_found_again(tmp_path):
    index = bench_scale.write_index(tmp_path / "home", 1000)
    for step in bench_embed_rows.STEPS.values():
        step(str(tmp_path / "home"), index.to_json())


@pytest.mark.parametrize("rows", [1, 1000, 2500])
def test_the_made_up_pages_are_a_bucket(monkeypatch, rows):
    s3fs = pytest.importorskip("s3fs")
    with bench_listing.served() as endpoint:
        for name, value in bench_listing.environment_of(endpoint, rows).items():
            monkeypatch.setenv(name, value)
        client.filesystem.cache_clear()
        s3fs.S3FileSystem.clear_instance_cache()
        for step in bench_listing.STEPS.values():
            step(rows)
        found, known = list_objects(Path("s3:/bucket/set")), client.filesystem("s3").find("bucket/set", detail=True)
    assert {f"bucket/set/{path}": found.entry(path) for path in found.paths} == {
        name: Entry.of(info) for name, info in known.items()
    }
    client.filesystem.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


def test_the_slope_of_a_step_is_that_between_its_own_sizes(capsys):
    small, large = Measured(1.0, 2.0, 100.0), Measured(9.0, 20.0, 200.0)
    print_slopes({100: {"a": small, "b": small}, 1000: {"a": large}, 10: {"b": small}})
    assert capsys.readouterr().out.split("\n") == [
        "a                  slope  1.00 from 100 to 1,000",
        "b                  slope  0.00 from 10 to 100",
        "",
    ]
    assert "9.0 s      20.0 s of CPU     200 MB" in line_of("a", 1000, large)
