"""The facts of images in tar shards, which the tables of the shards have."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.columns.digests import WIDTH
from data.columns.records import order_of
from data.index.facts import FileFacts, codes_of_reasons
from data.people import Mask
from data.sources.shards import ShardTable


def set_facts(facts: FileFacts, root: Path, paths: pa.Array, tables: Mapping[str, ShardTable]) -> Mask:
    """Store the facts of the images in shards; return their mask. tables: absolute path of a shard -> its table."""
    found = np.zeros(len(paths), dtype=np.bool_)
    if not tables:
        return found
    order = order_of(paths)
    ordered = paths.take(pa.array(order))
    for shard, table in tables.items():
        prefix = f"{shard.removeprefix(f'{root}/')}/"
        start, end = _first(ordered, prefix), _first(ordered, f"{prefix[:-1]}0")  # "0" follows "/"
        names = pc.utf8_slice_codeunits(ordered.slice(start, end - start), len(prefix)).cast(pa.string())
        rows = pc.index_in(names, value_set=table.rows["name"].combine_chunks()).fill_null(-1).to_numpy()
        is_known, at = rows >= 0, order[start:end]
        facts.rows[at[is_known]] = _facts_of(table).rows[rows[is_known]]
        found[at[is_known]] = True
    return found


def _first(ordered: pa.Array, text: str) -> int:
    """Return the place of the first of the sorted texts that is not below `text`."""
    return bisect_left(range(len(ordered)), text, key=lambda row: str(ordered[row].as_py()))


def _facts_of(table: ShardTable) -> FileFacts:
    """Return the facts of the images in a table, in its order; the times are those of the shard."""
    facts, rows = FileFacts.empty(len(table.rows)), table.rows
    for name in ("size", "width", "height", "flat"):
        facts.rows[name] = rows[name].to_numpy()
    _, facts.rows["mtime_ns"], facts.rows["ctime_ns"] = table.stamp
    facts.rows["is_read"] = rows["sha256"].is_valid().to_numpy()
    digests = rows["sha256"].fill_null(bytes(WIDTH)).to_numpy().tolist()
    facts.rows["sha256"] = np.frombuffer(b"".join(digests), dtype=f"S{WIDTH}")
    facts.rows["reason"] = codes_of_reasons(rows["reason"].to_pylist())
    return facts
