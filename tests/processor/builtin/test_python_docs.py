import subprocess
import sys
from collections import Counter

from small_doge.processor import builtin
from small_doge.processor.builtin import iter_documents
from small_doge.processor.builtin.python_sources import read_sources


def test_the_standard_library_alone_gives_over_a_megabyte_of_unique_sorted_documents(documents):
    ids = [d["id"] for d in documents]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids) > 2_000
    assert sum(len(d["text"]) for d in documents) > 1_000_000
    assert {"statistics.median", "collections.Counter", "itertools.chain", "os.path.join", "for (topic)"} <= set(ids)


def test_a_document_opens_with_its_name_and_signature(documents):
    median = next(d for d in documents if d["id"] == "statistics.median")
    assert median["text"].startswith("function statistics.median(data)\n\nReturn the median (middle value)")
    assert median["parameters"] == ["data"]
    assert median["source"] == "builtin:python-docs"
    assert set(median) == {"text", "id", "source", "group", "kind", "module", "parameters", "doc"}


def test_short_docstrings_are_gathered_in_an_index(documents):
    index = next(d for d in documents if d["id"] == "math (index)")
    assert "math.sqrt(x, /): Return the square root of x." in index["text"].split("\n")


def test_documents_are_free_of_markup_roles_and_directives(documents):
    noisy = [d["id"] for d in documents if d["kind"] != "topic" and (":class:`" in d["doc"] or "\n.. " in d["doc"])]
    assert noisy == []


def test_a_second_pass_gives_the_same_documents_and_counts_add_up(documents):
    report = Counter()
    assert list(iter_documents(report, packages=False)) == documents
    assert report["kept"] == len(documents) == sum(n for k, n in report.items() if k.startswith("kept: "))
    assert report["dropped: near copy"] > 50
    assert report["dropped: exact copy"] > 50


def test_reading_never_imports_what_it_reads(tmp_path):
    (tmp_path / "harmful").mkdir()
    (tmp_path / "harmful" / "__init__.py").write_text('"""Docs of the package."""\nraise SystemExit("imported")\n')
    (tmp_path / "harmful" / "broken.py").write_text("def (:\n")
    report = Counter()
    assert [e.name for e in read_sources(tmp_path, report)] == ["harmful"]
    assert report["files left out: too large or not parsable"] == 1


def test_names_follow_the_packages_own_exports(tmp_path):
    inner = tmp_path / "shop" / "_inner"
    inner.mkdir(parents=True)
    (tmp_path / "shop" / "__init__.py").write_text("from ._inner import *\n")
    (inner / "__init__.py").write_text("from .till import Till as Till, hidden\n__all__ = ['Till']\n")
    (inner / "till.py").write_text(
        'class Till:\n    """Holds coins."""\n    def pay(self, sum, /, *, tip=0): "Pays."\n'
    )
    entries = list(read_sources(tmp_path, Counter()))
    assert [(e.name, e.kind, e.signature) for e in entries] == [
        ("shop.Till", "class", ""),
        ("shop.Till.pay", "method", "(sum, *, tip=0)"),
    ]


def test_the_generators_pull_in_neither_torch_nor_transformers(tmp_path):
    # The folder is mounted under another name, so that `small_doge` itself, which needs torch, stays out.
    script = (
        "import sys, types\n"
        "sys.modules['data'] = root = types.ModuleType('data')\n"
        "root.__path__ = [sys.argv[1]]\n"
        "from data.python_docs import iter_documents\n"
        "from data.python_preferences import iter_preferences\n"
        "assert sum(1 for _ in iter_preferences(list(iter_documents(packages=False)))) > 1000\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, builtin.__path__[0]], check=True, cwd=tmp_path)
