"""Source files from Software Heritage's public bucket, for rows that name them by id (python-edu)."""

from __future__ import annotations

import gzip
import os
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from small_doge.processor.ordered_map import map_in_order
from small_doge.processor.readers import Row
from small_doge.processor.report import Report

BUCKET_URL = "https://softwareheritage.s3.amazonaws.com/content"
BUCKET_ENV = "SMALL_DOGE_SWH_URL"
ATTEMPTS = 3
TIMEOUT_S = 30
CONNECTIONS = 16


def fetch_file(blob_id: str, bucket: str, pause_s: float = 1.0) -> str:
    """The text of one file; three attempts where the connection fails.

    Raises:
        OSError: it cannot be fetched.
        UnicodeDecodeError, zlib.error: what came is no gzipped UTF-8 text.
    """
    for attempt in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(f"{bucket}/{blob_id}", timeout=TIMEOUT_S) as response:
                return gzip.decompress(response.read()).decode("utf-8")
        except urllib.error.HTTPError:
            raise
        except OSError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(pause_s * 2**attempt)
    raise AssertionError


def with_files(rows: Iterable[Row], report: Report, source: str, connections: int = CONNECTIONS) -> Iterator[Row]:
    """Add the field `text` to rows that have a `blob_id`; one that cannot be fetched is counted and left out."""
    bucket = os.environ.get(BUCKET_ENV, BUCKET_URL)

    def fetch(row: Row) -> tuple[Row, str | Exception]:
        try:
            return row, fetch_file(row.fields["blob_id"], bucket)
        except (KeyError, OSError, UnicodeDecodeError, zlib.error) as error:
            return row, error

    with ThreadPoolExecutor(connections) as pool:
        for row, text in map_in_order(fetch, rows, pool, ahead=2 * connections):
            if isinstance(text, str):
                yield Row({**row.fields, "text": text}, row.origin)
            else:
                report.read[source] += 1
                report.drop(source, "file could not be fetched", row.origin, str(text) or type(text).__name__)
