from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from small_doge.processor.conversations import is_preference, to_conversation, to_preference
from small_doge.processor.documents import iter_documents
from small_doge.processor.pt_datasets_process import mix_datasets_by_ratio
from small_doge.processor.report import Report
from small_doge.processor.sources import open_source, source_names
from small_doge.processor.sources.catalog import KINDS, SourceSpec, catalog, read_spec

sys.path.insert(0, str(Path(__file__).parent))
from stub_hub import COMMIT, OLDER, serve

THOUGHT = "<|begin_of_thought|>\n\nhm\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n4\n\n<|end_of_solution|>"
MESSAGES = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\n4"}]
# Values of the same form as the real columns, by the name of the column.
COLUMN_VALUES = {
    "text": "some text",
    "id": "<urn:uuid:1>",
    "url": "https://example.org",
    "prompt": "2+2?",
    "blob_id": "abc123",
    "repo_name": "o/r",
    "path": "a.py",
    "messages": MESSAGES,
    "conversations": [{"from": "user", "value": "2+2?"}, {"from": "assistant", "value": THOUGHT}],
    "system": "Answer after <|begin_of_thought|>.",
    "chosen": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
    "rejected": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "5"}],
    "problem": "2+2?",
    "answer": "4",
    "solution": "2+2 is 4",
}
THE_ONES_NAMED_IN_THE_SEEDS = """
fineweb-edu fineweb-edu-dedup cosmopedia-v2 python-edu finemath open-web-math smoltalk ultrafeedback_binarized
Bespoke-Stratos-17k NuminaMath-TIR OpenThoughts-114k OpenR1-Math-220k chinese-cosmopedia Infinity-Instruct-0625
Infinity-Instruct-7M Infinity-Instruct-Gen
"""


def made_rows(spec: SourceSpec, count: int = 3) -> list[dict]:
    return [{name: COLUMN_VALUES[name] for name in spec.columns} for _ in range(count)]


@pytest.mark.parametrize("name", THE_ONES_NAMED_IN_THE_SEEDS.split())
def test_the_source_is_described_whole(name):
    spec = catalog()[name.lower()]
    assert spec.name == name
    assert name in source_names()
    assert spec.kind in KINDS
    assert spec.hub_id.count("/") == 1
    assert all([spec.description, spec.columns, spec.license, spec.citation, spec.split, spec.revision])
    assert (spec.text_field is not None) == (spec.kind == "text")


@pytest.mark.parametrize("name", sorted(catalog()))
def test_rows_of_its_schema_are_read_from_a_local_copy(name, tmp_path, monkeypatch):
    spec = catalog()[name]
    folder = tmp_path / spec.name
    folder.mkdir()
    rows = made_rows(spec)
    if spec.fetch:
        rows = [{**row, "text": "print()"} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), folder / "part.parquet")
    monkeypatch.setenv("SMALL_DOGE_SOURCES", str(tmp_path))
    found = [row.fields for row in open_source(spec.name, Report())]
    assert len(found) == 3
    if spec.kind == "text":
        assert [document.text for document in iter_documents(spec.name)] == [rows[0]["text"]] * 3
    elif spec.kind == "preference":
        assert is_preference(found[0])
        assert to_preference(found[0])["prompt"] == [{"role": "user", "content": "2+2?"}]
    else:
        messages = to_conversation(found[0])["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"]
        assert messages[1] == {"role": "assistant", "content": "4", "reasoning_content": "hm"}


def test_a_name_in_any_case_is_found(tmp_path, monkeypatch):
    (tmp_path / "FineMath").mkdir()
    (tmp_path / "finemath").mkdir(exist_ok=True)
    (tmp_path / "finemath" / "a.jsonl").write_text('{"text": "x"}')
    monkeypatch.setenv("SMALL_DOGE_SOURCES", str(tmp_path))
    assert [d.text for d in iter_documents("FineMath")] == ["x"]


@pytest.mark.parametrize(
    ("text", "mend"),
    [("name: a\nhub: b", "unknown keys hub"), ("name: a", "lacks a key"), (None, "give one of text")],
)
def test_a_wrong_source_file_is_refused(tmp_path, text, mend):
    if text is None:
        keys = ("name", "description", "kind", "hub_id", "split", "revision", "license", "citation")
        text = "".join(f"{key}: x\n" for key in keys) + "columns: {}"
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=mend):
        read_spec(tmp_path / "a.yaml")


READ = """
import json, sys
from small_doge.processor.report import Report
from small_doge.processor.sources import open_source
report = Report()
try:
    rows = [[row.fields, row.origin] for row in open_source(sys.argv[1], report, **json.loads(sys.argv[2]))]
    print(json.dumps({"rows": rows, "dropped": report.dropped, "examples": report.examples, "notes": report.notes}))
except ValueError as error:
    print(json.dumps({"error": str(error)}))
"""


def read_in_new_process(source: str, options: dict | None = None, **environment: str) -> dict:
    """The endpoint of the Hub is read when its client is imported, hence a process of its own."""
    env = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0", **environment}
    env.pop("SMALL_DOGE_SOURCES", None)
    command = [sys.executable, "-c", READ, source, json.dumps(options or {})]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def put_on_hub(root: Path, spec: SourceSpec, rows: list[dict], tag: str = "") -> None:
    folder = root / f"{spec.hub_id}{tag}"
    data = folder / (spec.config or "data")
    data.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), data / f"{spec.split}-00000-of-00001.parquet")
    config = {"config_name": spec.config or "default", "data_files": [{"split": spec.split, "path": f"{data.name}/*"}]}
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps([config])}\n---\n# A stand-in\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finemath", "ultrafeedback_binarized", "openthoughts-114k"])
def test_a_named_source_streams_from_the_hub(name, tmp_path):
    spec = catalog()[name]
    put_on_hub(tmp_path / "hub", spec, made_rows(spec, 5))
    with serve(tmp_path / "hub") as (address, asked):
        out = read_in_new_process(spec.name, HF_ENDPOINT=address, HF_HOME=str(tmp_path / "home"))
    assert [fields for fields, _ in out["rows"]] == made_rows(spec, 5)
    assert out["rows"][3][1] == f"{spec.name}:{spec.split}#3"
    assert any(spec.hub_id in path for path in asked)
    assert out["notes"] == [f"{spec.name} was read from the Hub: {spec.hub_id} at main, commit {COMMIT}."]


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["v1", OLDER])
def test_a_revision_pins_a_source_on_the_hub(revision, tmp_path):
    spec = catalog()["finemath"]
    put_on_hub(tmp_path / "hub", spec, [{"text": "new", "url": "u"}])
    put_on_hub(tmp_path / "hub", spec, [{"text": "old", "url": "u"}], tag="@v1")
    with serve(tmp_path / "hub") as (address, _):
        out = read_in_new_process(
            "finemath", {"revision": revision}, HF_ENDPOINT=address, HF_HOME=str(tmp_path / "home")
        )
    assert [fields["text"] for fields, _ in out["rows"]] == ["old"]
    assert out["notes"] == [f"finemath was read from the Hub: {spec.hub_id} at {revision}, commit {OLDER}."]


@pytest.mark.slow
def test_a_revision_that_is_not_there_is_refused_in_one_line(tmp_path):
    spec = catalog()["finemath"]
    put_on_hub(tmp_path / "hub", spec, made_rows(spec))
    with serve(tmp_path / "hub") as (address, _):
        out = read_in_new_process("finemath", {"revision": "v9"}, HF_ENDPOINT=address, HF_HOME=str(tmp_path / "home"))
    assert "\n" not in out["error"]
    assert out["error"].startswith(f"Cannot read {spec.hub_id} from the Hub")


@pytest.mark.parametrize("source", ["builtin:arithmetic", "local.jsonl", "finemath"])
def test_a_source_that_is_not_on_the_hub_has_no_revision(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMALL_DOGE_SOURCES", str(tmp_path))
    Path("local.jsonl").write_text('{"text": "x"}')
    Path("finemath").mkdir()
    Path("finemath", "a.jsonl").write_text('{"text": "x"}')
    with pytest.raises(ValueError, match="has no revision 'v1': leave it out"):
        next(open_source(source, Report(), revision="v1"))
    with pytest.raises(ValueError, match="has no revision 'v1': leave it out"):
        mix_datasets_by_ratio([{source: 1.0}], source_options={source: {"revision": "v1"}})


@pytest.mark.slow
def test_python_edu_fetches_its_files_and_counts_those_it_cannot(tmp_path):
    spec = catalog()["python-edu"]
    rows = [{"blob_id": f"blob{i}", "repo_name": "o/r", "path": f"{i}.py"} for i in range(4)]
    put_on_hub(tmp_path / "hub", spec, rows)
    bucket = tmp_path / "hub" / "bucket" / "swh"
    bucket.mkdir(parents=True)
    for i in range(3):
        (bucket / f"blob{i}").write_bytes(gzip.compress(f"print({i})".encode()))
    (bucket / "blob2").write_bytes(b"no gzip")
    with serve(tmp_path / "hub") as (address, _):
        out = read_in_new_process(
            "python-edu",
            HF_ENDPOINT=address,
            HF_HOME=str(tmp_path / "home"),
            SMALL_DOGE_SWH_URL=f"{address}/datasets/bucket/swh/resolve/main",
        )
    assert [fields["text"] for fields, _ in out["rows"]] == ["print(0)", "print(1)"]
    assert out["dropped"] == {"python-edu": {"file could not be fetched": 2}}
    assert out["examples"]["file could not be fetched"][1].startswith("python-edu:train#3: HTTP Error 404")


@pytest.mark.slow
def test_without_a_network_one_line_says_what_would_serve(tmp_path):
    start = time.monotonic()
    out = read_in_new_process("finemath", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    assert time.monotonic() - start < 60
    assert "\n" not in out["error"]
    assert "with the columns text, url into $SMALL_DOGE_SOURCES/finemath" in out["error"]
