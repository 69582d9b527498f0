"""Source `builtin:python-docs`: the English documentation that every machine with Python and our packages holds.

Docstrings of the standard library and of the installed packages, Python's help topics, and the packages' own long
descriptions. Nothing is downloaded.
"""

import gc
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata

from .near_duplicates import NearDuplicates
from .python_sources import Entry, package_roots, read_c_modules, read_sources, stdlib_root
from .text_cleaning import clean_description, clean_docstring, is_english

SOURCE = "builtin:python-docs"
SHORTEST = 80  # characters of documentation, the heading not counted
_OPENING = re.compile(r"(?:\w+\.)*(\w+)\([^\n]*?\)(?:[ \t]*-{1,2}>[^\n]*?)?(?:[ \t]*(?:\n|$)|[ \t]+--[ \t]+)")
FEWEST_IN_INDEX = 3  # short docstrings of one module or class that make a document
LONGEST = 20_000  # characters; what is longer is cut at a paragraph


def iter_documents(report: Counter | None = None, packages: bool = True) -> Iterator[dict]:
    """Yield documents sorted by `id`, the same on every run for the same installed packages.

    A document has `text` (a heading line with the name and signature, a blank line, the documentation), `id`
    (`"statistics.median"`, `"for (topic)"`), `source`, `group` (similar documents share it: split by its hash, so that
    no near copy of a test text is trained on), `kind` (module, class, function, method, topic, package or index),
    `module`, `parameters` (names) and `doc` (the text without its heading). Docstrings too short to stand alone are
    gathered, those of one module or class together, in an index: one line each, `math.sqrt(x): Return the square...`.

    Near copies (see `NearDuplicates`) are dropped, all but the first by name.

    `report`, a Counter, receives how many were kept and how many were dropped for which reason.
    `packages=False` reads the standard library alone.
    """
    with _collector_paused():
        documents = _built(Counter() if report is None else report, packages)
    yield from documents


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without garbage collection: a syntax tree has no cycles, and scanning its many nodes doubles the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _built(counts: Counter, packages: bool) -> list[dict]:
    seen: set[str] = set()
    copies = NearDuplicates()
    kept: list[dict] = []
    short: dict[str, list[str]] = defaultdict(list)

    def take(entry: Entry, doc: str) -> None:
        key = re.sub(r"\W+", " ", doc.lower())
        if not is_english(doc):
            counts["dropped: not English prose"] += 1
        elif key in seen:
            counts["dropped: exact copy"] += 1
        elif len(doc) < SHORTEST:
            seen.add(key)
            if entry.kind in ("class", "function", "method") and len(doc) >= 20 and "\n\n" not in doc:
                short[entry.name.rpartition(".")[0] or "builtins"].append(_index_line(entry, doc))
            else:
                counts["dropped: shorter than 80 characters"] += 1
        elif not copies.add(doc, ignore=(entry.name,)):
            counts["dropped: near copy"] += 1
        else:
            seen.add(key)
            counts[f"kept: {entry.kind}"] += 1
            kept.append(_document(entry, doc))

    for entry in sorted(_entries(counts, packages), key=lambda e: (e.name, e.kind)):
        doc = clean_description(entry.doc) if entry.kind == "package" else clean_docstring(entry.doc)
        take(entry, _shortened(_without_own_signature(doc, entry.name)))
    for parent, lines in sorted(short.items()):
        if len(lines) >= FEWEST_IN_INDEX:
            counts["gathered: short docstrings in an index"] += len(lines)
            take(Entry(parent, "index", "", parent), "\n".join(lines))
        else:
            counts["dropped: shorter than 80 characters"] += len(lines)
    counts["kept"] = len(kept)
    for index, document in enumerate(kept):
        document["group"] = kept[copies.group(index)]["id"]
    taken: set[str] = set()
    for document in kept:
        if document["kind"] in ("index", "package", "topic") or document["id"] in taken:
            document["id"] += f" ({document['kind']})"
        taken.add(document["id"])
    return sorted(kept, key=lambda document: document["id"])


@cache
def cached_documents(packages: bool = True) -> tuple[dict, ...]:
    """The documents of `iter_documents`, read once a process. Treat them as read-only."""
    return tuple(iter_documents(packages=packages))


def _entries(counts: Counter, packages: bool) -> list[Entry]:
    entries: dict[tuple[str, str], Entry] = {}

    def take(entry: Entry) -> None:
        known = entries.setdefault((entry.name, entry.kind), entry)
        if known is not entry:
            counts["dropped: second docstring of one name"] += 1
            if len(entry.doc) > len(known.doc):
                entries[entry.name, entry.kind] = entry

    for entry in _topics():
        take(entry)
    for entry in read_sources(stdlib_root(), counts):
        take(entry)
    for entry in read_c_modules():
        take(entry)
    if packages:
        for root in package_roots():
            for entry in read_sources(root, counts):
                take(entry)
        for entry in _descriptions():
            take(entry)
    return list(entries.values())


def _topics() -> Iterator[Entry]:
    """Python's help topics: what `help("assert")` shows."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield Entry(name, "topic", text, "python")


def _descriptions() -> Iterator[Entry]:
    """The long descriptions of the installed packages."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        fields = distribution.metadata
        name = fields["Name"]
        text = fields.get("Description") or fields.get_payload()  # type: ignore[attr-defined]
        if name and isinstance(text, str) and name.lower() != "small-doge":
            found.setdefault(name, text)
    for name, text in sorted(found.items()):
        yield Entry(name, "package", text, name)


def _index_line(entry: Entry, doc: str) -> str:
    return f"{entry.name}{entry.signature}: {' '.join(doc.split())}"


def _document(entry: Entry, doc: str) -> dict:
    heading = f"{entry.kind} {entry.name}"
    if entry.kind in ("function", "method", "class"):
        heading += entry.signature
    return {
        "text": f"{heading}\n\n{doc}",
        "id": entry.name,
        "source": SOURCE,
        "group": "",
        "kind": entry.kind,
        "module": entry.module,
        "parameters": entry.parameters,
        "doc": doc,
    }


def _without_own_signature(doc: str, name: str) -> str:
    """Leave out opening lines such as `median(data) -> number`, which the heading already says."""
    short = name.rpartition(".")[2]
    while (match := _OPENING.match(doc)) and match.group(1) == short:
        doc = doc[match.end() :].lstrip()
    return doc


def _shortened(doc: str) -> str:
    if len(doc) <= LONGEST:
        return doc
    end = doc.rfind("\n\n", 0, LONGEST)
    return doc[: end if end > 0 else LONGEST].rstrip()
