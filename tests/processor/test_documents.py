from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from small_doge.processor.documents import Document, is_test, iter_documents
from small_doge.processor.report import Report

ROWS = [{"text": f"document {i}: 狗\n", "number": i} for i in range(30)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write_as(path, kind):
    if kind == "jsonl":
        path.write_bytes(LINES)
    elif kind == "jsonl.zst":
        # Two frames in one file, as `cat a.zst b.zst` makes them.
        half = LINES.index(b"\n", len(LINES) // 2) + 1
        path.write_bytes(b"".join(zstandard.compress(part) for part in (LINES[:half], LINES[half:])))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(LINES))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.zst", "jsonl.gz", "json", "parquet"])
def test_every_kind_of_file_gives_the_same_documents(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    write_as(path, kind)
    report = Report()
    documents = list(iter_documents(str(path), report=report))
    assert [d.text for d in documents] == [row["text"] for row in ROWS]
    assert all(d.origin.startswith(str(path)) for d in documents)
    assert report.read[str(path)] == report.kept[str(path)] == 30


def test_lines_are_numbered_from_one(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    assert [d.origin for d in iter_documents(str(tmp_path / "a.jsonl"))][:2] == [
        f"{tmp_path}/a.jsonl:1",
        f"{tmp_path}/a.jsonl:2",
    ]


def test_a_folder_is_read_to_any_depth_in_order_of_name(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text("one\n")
    (tmp_path / "a.md").write_text("# two")
    (tmp_path / "z.jsonl").write_text('{"text": "three"}')
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert [d.text for d in iter_documents(str(tmp_path))] == ["# two", "one\n", "three"]


def test_a_folder_saved_by_datasets_is_read_by_split(tmp_path):
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_list(ROWS[:3]), test=Dataset.from_list(ROWS[3:5])).save_to_disk(tmp_path / "saved")
    assert len(list(iter_documents(str(tmp_path / "saved")))) == 3
    assert len(list(iter_documents(str(tmp_path / "saved"), split="test"))) == 2
    with pytest.raises(ValueError, match="choose one of train, test"):
        list(iter_documents(str(tmp_path / "saved"), split="dev"))


def test_bad_rows_are_counted_with_file_and_line_and_never_replaced(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(
        b'{"text": "good"}\n{"text": \n["text"]\n{"txt": "x"}\n{"text": 5}\n{"text": "  "}\n'
        b'{"text": "\xff"}\n\n{"text": "\\ud800"}\n{"text": "last"}'
    )
    report = Report()
    assert [d.text for d in iter_documents(str(path), report=report)] == ["good", "last"]
    report.check()
    assert report.read[str(path)] == 9
    assert report.dropped[str(path)] == {
        "unreadable line": 1,
        "not a JSON object": 1,
        "no field 'text'": 1,
        "field 'text' is not text": 1,
        "empty text": 1,
        "invalid UTF-8": 2,
    }
    assert report.examples["invalid UTF-8"][0].startswith(f"{path}:7")
    assert report.examples["no field 'text'"] == [f"{path}:4: has txt"]


def test_a_text_file_that_is_not_utf8_is_counted_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\xff\n")
    (tmp_path / "b.txt").write_text("fine")
    report = Report()
    assert [d.text for d in iter_documents(str(tmp_path), report=report)] == ["fine"]
    assert report.examples["invalid UTF-8"][0].startswith(f"{tmp_path}/a.txt:2")


@pytest.mark.parametrize("suffix", ["jsonl.zst", "jsonl.gz"])
def test_a_truncated_shard_is_refused_after_the_rows_before_the_break(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    lines = b"".join(json.dumps({"text": f"{i} " + str(i * 7919) * 40}).encode() + b"\n" for i in range(20_000))
    whole = zstandard.compress(lines) if suffix.endswith("zst") else gzip.compress(lines)
    path.write_bytes(whole[: len(whole) // 2])
    seen = []
    with pytest.raises(ValueError, match=r"breaks off after line \d+: fetch it again") as error:
        seen.extend(iter_documents(str(path)))
    assert "\n" not in str(error.value)
    report = Report()
    kept = list(iter_documents(str(path), report=report, on_truncated="keep"))
    assert 0 < len(kept) < 20_000
    assert "breaks off" in report.notes[0]
    report.check()


@pytest.mark.parametrize(
    ("name", "content", "mend"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.jsonl.zst", b"", "empty"),
        ("a.parquet", b"", "empty"),
        ("a.txt", b"\x00\x01\x02ELF", "binary"),
        ("a.jsonl", b"\x00\x01\x02\n", "binary"),
        ("a.jsonl.zst", b"no zstd at all", "not sound zstd"),
        ("a.jsonl.gz", b"no gzip at all", "not sound gzip"),
        ("a.parquet", b"no parquet at all", "cannot be read as parquet"),
        ("a.json", b"{", "not valid JSON"),
        ("a.bin", b"\x00", "convert it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_file_gives_one_line_that_names_it_and_the_mend(tmp_path, name, content, mend):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=mend) as error:
        list(iter_documents(str(tmp_path / name)))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("source", "mend"),
    [
        ("./nowhere", "correct the path"),
        ("data/nowhere.jsonl", "correct the path"),
        ("builtin:python-doc", "did you mean 'builtin:python-docs'"),
        ("no-such-name", "give a path"),
    ],
)
def test_an_unknown_source_is_refused_with_the_mend(source, mend):
    with pytest.raises(ValueError, match=mend):
        list(iter_documents(source))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no data: put files"):
        list(iter_documents(str(tmp_path)))


def test_a_formatting_function_makes_the_text(write_jsonl):
    path = write_jsonl("a.jsonl", [{"title": "T", "body": "b"}])
    as_text = list(iter_documents(path, formatting_func=lambda row: row["title"] + row["body"]))
    as_dict = list(iter_documents(path, "content", formatting_func=lambda row: {"content": row["body"]}))
    assert [as_text[0].text, as_dict[0].text] == ["Tb", "b"]


def test_the_test_part_holds_its_share_and_never_changes():
    documents = [Document(f"text {i}", "") for i in range(20_000)]
    chosen = {d.text for d in documents if is_test(d, 0.05)}
    assert 0.04 < len(chosen) / len(documents) < 0.06
    assert chosen <= {d.text for d in documents if is_test(d, 0.1)}
    assert not any(is_test(d, 0) for d in documents)
    assert is_test(Document("text 20", "elsewhere"), 0.05) == ("text 20" in chosen)


def test_documents_of_one_group_fall_on_the_same_side():
    sides = {is_test(Document(f"text {i}", "", group="g7"), 0.5) for i in range(50)}
    assert len(sides) == 1
