"""Names for results: the same inputs give the same name, a changed file or argument another one."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from small_doge.processor.readers import is_pattern, list_files
from small_doge.processor.sources import BUILTIN_PREFIX, hub_address, local_copy
from small_doge.processor.sources.catalog import catalog
from small_doge.processor.sources.hub import hub_commit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fingerprint(
    names: list[str],
    tokenizer: PreTrainedTokenizerBase | None,
    formatting_func: Callable[..., Any] | None,
    arguments: dict[str, Any],
) -> str:
    """16 hex digits that change with any source file or commit, the tokenizer, the formatting function or an argument.

    Raises:
        ValueError: a source on the Hub cannot be reached, and what would serve instead.
    """
    from datasets.fingerprint import Hasher

    options = arguments.get("source_options", {})
    revisions = {name: option.get("revision") for name, option in options.items()}
    parts = {
        "code": _tree_state(Path(__file__).parent),
        "sources": {name: _source_state(name, revisions.get(name)) for name in names},
        "tokenizer": None if tokenizer is None else _tokenizer_state(tokenizer),
        "formatting_func": None if formatting_func is None else Hasher.hash(formatting_func),
        "arguments": arguments,
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    body = backend.to_str() if backend is not None else repr(tokenizer)
    text = f"{body}{tokenizer.chat_template}{tokenizer.bos_token_id}{tokenizer.eos_token_id}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _source_state(name: str, revision: str | None) -> Any:
    if name.startswith(BUILTIN_PREFIX):
        # Builtin text is made from what is installed.
        installed = sorted(f"{item.metadata['Name']}=={item.version}" for item in distributions())
        return [sys.version, hashlib.blake2b("\n".join(installed).encode(), digest_size=8).hexdigest()]
    path = Path(name)
    if path.exists():
        return [str(path.resolve()), _tree_state(path)]
    if is_pattern(name):
        return [[str(file.resolve()), _tree_state(file)] for file in list_files(name)]
    spec = catalog().get(name.lower())
    if spec is not None:
        local = local_copy(spec)
        if local is not None:
            return [asdict(spec), _tree_state(local)]
    if address := hub_address(name):
        hub_id, default = address
        return [None if spec is None else asdict(spec), hub_commit(name, hub_id, revision or default)]
    return name


def _tree_state(path: Path) -> list[tuple[str, int, int]]:
    files = (
        [path]
        if path.is_file()
        else sorted(file for file in path.rglob("*") if file.is_file() and file.suffix != ".pyc")
    )
    return [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
