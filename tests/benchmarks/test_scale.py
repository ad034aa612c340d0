"""The worlds of the benchmarks of scale: their made-up datasets can be indexed at any size."""

from __future__ import annotations

import bench_embed_rows
import bench_rows
import bench_scale
import pytest


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
