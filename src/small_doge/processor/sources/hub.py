"""Data sets on the Hub: their rows, streamed from one commit, which is named in the report."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from urllib.parse import urlsplit

from small_doge.processor.readers import Row
from small_doge.processor.report import Report
from small_doge.processor.sources.catalog import catalog

CONNECT_S = 5


def hub_rows(
    source: str, hub_id: str, config: str | None, split: str, revision: str | None, report: Report
) -> Iterator[Row]:
    """Yield the rows of a data set on the Hub; `report` notes the commit that they are from.

    Raises:
        ValueError: the Hub cannot be reached or has no such data set or revision, and what would serve instead.
    """
    from datasets import load_dataset

    commit = hub_commit(source, hub_id, revision)
    report.note(f"{source} was read from the Hub: {hub_id} at {revision or 'main'}, commit {commit}.")
    with _or_what_would_serve(source, hub_id):
        rows = load_dataset(hub_id, config, split=split, revision=commit, streaming=True)
        for number, fields in enumerate(rows):
            yield Row(fields, f"{source}:{split}#{number}")


@cache
def hub_commit(source: str, hub_id: str, revision: str | None) -> str:
    """The commit that a branch or tag of a data set (default: its main branch) names now, asked once in a process.

    Raises:
        ValueError: the Hub cannot be reached or has no such data set or revision, and what would serve instead.
    """
    from huggingface_hub import HfApi

    with _or_what_would_serve(source, hub_id):
        _check_hub_answers()
        return str(HfApi().dataset_info(hub_id, revision=revision).sha)


@contextmanager
def _or_what_would_serve(source: str, hub_id: str) -> Iterator[None]:
    try:
        yield
    # What the Hub's clients raise is an OSError, whatever went wrong.
    except OSError as error:
        spec = catalog().get(source.lower())
        columns = f"with the columns {', '.join(spec.columns)}" if spec else "with the same columns"
        raise ValueError(
            f"Cannot read {hub_id} from the Hub ({str(error).splitlines()[0][:150]}): connect, or put a .jsonl or "
            f".parquet file {columns} into $SMALL_DOGE_SOURCES/{source}, or give its path as the source."
        ) from None


def _check_hub_answers() -> None:
    """Fail within seconds where there is no network; the Hub's own client tries for a minute."""
    from huggingface_hub.constants import ENDPOINT

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return
    url = urlsplit(ENDPOINT)
    socket.create_connection((url.hostname, url.port or (443 if url.scheme == "https" else 80)), CONNECT_S).close()
