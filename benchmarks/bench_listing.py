"""Time and peak memory of the listing of an S3 bucket, as its objects grow.

    python benchmarks/bench_listing.py [--rows 10000 100000] [--million] [--steps list scan find]

A server on this machine, in a process of its own, answers ListObjectsV2 with made-up pages of 1,000 objects; it stores
none. "list" is the listing of `data.sources.listing`, "scan" is what the reader `images` makes of it before an image is
read, and "find" is that of s3fs, for comparison; --million does not run it. Each step runs in a process of its own,
whose peak memory counts everything that it has loaded. The server uses another core: CPU seconds are those of the step.
Target: 1.5 GB at 4,000,000 objects.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from steps import Measured, line_of, measure, print_slopes

from data.datasets import DatasetConfig, scan_dataset
from data.sources import remote
from data.sources.client import filesystem

ROWS: Final = (10_000, 100_000)
MILLIONS: Final = 4_000_000
_PER_PAGE: Final = 1000
_PER_FOLDER: Final = 10_000
_ENVIRONMENT: Final = {
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",  # pragma: allowlist secret
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def page_of(start: int, rows: int) -> str:
    """Return the page of a listing of `rows` objects in the bucket, from the object number `start` on."""
    end = min(start + _PER_PAGE, rows)
    contents = "".join(map(_object, range(start, end)))
    more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < rows else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>bucket</Name><Prefix>set/</Prefix><MaxKeys>{_PER_PAGE}</MaxKeys><EncodingType>url</EncodingType>"
        f"<KeyCount>{end - start}</KeyCount><IsTruncated>{str(end < rows).lower()}</IsTruncated>{more}{contents}"
        "</ListBucketResult>"
    )


def _object(number: int) -> str:
    key = f"set/part{number // _PER_FOLDER:05d}/{number:08d}_c{number % 6}.jpg"
    etag = f"{number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}"
    return (
        f"<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
        f"<ETag>&quot;{etag}&quot;</ETag><Size>{4000 + number % 97}</Size><StorageClass>STANDARD</StorageClass>"
        "</Contents>"
    )


class _Pages(BaseHTTPRequestHandler):
    """Answers ListObjectsV2 by a page that follows from the address alone; it begins with the number of objects."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        rows = int(address.path.split("/")[1])
        token = parse_qs(address.query).get("continuation-token", ["0"])[0]
        content = page_of(int(token), rows).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _serve(sender: multiprocessing.connection.Connection) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        sender.send(server.server_port)
        server.serve_forever()


@contextmanager
def served() -> Iterator[str]:
    """Yield the address of the server."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_serve, args=(sender,), daemon=True)
    child.start()
    try:
        yield f"http://127.0.0.1:{receiver.recv()}"
    finally:
        child.kill()
        child.join()


def environment_of(endpoint: str, rows: int) -> dict[str, str]:
    """Return the variables by which s3fs finds the bucket of `rows` objects."""
    return {**_ENVIRONMENT, "AWS_ENDPOINT_URL": f"{endpoint}/{rows}"}


def list_objects(rows: int) -> None:
    """List the bucket."""
    assert len(remote.refresh(Path("s3:/bucket/set")).paths) == rows


def scan(rows: int) -> None:
    """List the bucket and make the records of its images."""
    assert len(scan_dataset(DatasetConfig(reader="images", root="s3://bucket/set")).records) == rows


def find(rows: int) -> None:
    """List the bucket by s3fs."""
    assert len(filesystem("s3").find("bucket/set", detail=True)) == rows


STEPS: Final[dict[str, Callable[[int], None]]] = {"list": list_objects, "scan": scan, "find": find}


def bench(endpoint: str, rows: int, steps: list[str]) -> dict[str, Measured]:
    """Measure the steps on a bucket of `rows` objects, and print one line for each."""
    os.environ.update(environment_of(endpoint, rows))
    found = {}
    for step in steps:
        found[step] = measure(STEPS[step], rows)
        print(line_of(step, rows, found[step]), flush=True)
    return found


def main() -> None:
    """Measure and print the table and the slopes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[*ROWS], help="objects of the buckets")
    parser.add_argument("--million", action="store_true", help=f"also {MILLIONS:,} objects")
    parser.add_argument("--steps", nargs="+", default=[*STEPS], choices=[*STEPS], help="steps, in this order")
    options = parser.parse_args()
    sizes = sorted({*options.rows, *([MILLIONS] if options.million else [])})
    print(f"{os.cpu_count()} cores")
    with served() as endpoint:
        print_slopes(
            {
                rows: bench(endpoint, rows, [step for step in options.steps if rows < MILLIONS or step != "find"])
                for rows in sizes
            }
        )


if __name__ == "__main__":
    main()
