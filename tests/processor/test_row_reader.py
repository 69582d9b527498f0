from __future__ import annotations

import pickle

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_from_disk

from small_doge.processor.row_reader import RowReader, position_ids

FEATURES = Features({"input_ids": List(Value("int32")), "seq_lengths": List(Value("int32"))})


def made(start, count):
    rows = [{"input_ids": list(range(start + i, start + 2 * i + 3)), "seq_lengths": [i, 3]} for i in range(count)]
    return Dataset.from_list(rows, features=FEATURES)


@pytest.fixture
def dataset(tmp_path):
    made(0, 40).save_to_disk(str(tmp_path / "a"))
    made(100, 30).save_to_disk(str(tmp_path / "b"))
    return concatenate_datasets([load_from_disk(str(tmp_path / name)) for name in "ab"])


@pytest.mark.parametrize("change", [lambda d: d, lambda d: d.shuffle(seed=3), lambda d: d.select(range(35, 50))])
def test_it_reads_what_the_data_set_reads(dataset, change):
    changed = change(dataset)
    reader = RowReader(changed)
    assert len(reader) == len(changed)
    for i in range(len(changed)):
        assert {name: values.tolist() for name, values in reader[i].items()} == changed[i]
    with pytest.raises(IndexError):
        reader[len(changed)]


def test_it_survives_a_trip_to_a_worker(dataset):
    shuffled = dataset.shuffle(seed=1)
    copy = pickle.loads(pickle.dumps(RowReader(shuffled, ["input_ids"])))
    assert [row["input_ids"].tolist() for row in map(copy.__getitem__, range(len(copy)))] == list(shuffled["input_ids"])


def test_rows_are_views_of_the_right_type(dataset):
    row = RowReader(dataset)[5]
    assert row["input_ids"].dtype == np.int32
    assert row["input_ids"].base is not None


def test_a_batch_holds_the_rows_padded_at_their_end(dataset):
    reader = RowReader(dataset.shuffle(seed=2))
    wanted = [9, 0, 33, 33]
    batch = reader.batch(wanted)
    rows = [reader.dataset[i] for i in wanted]
    longest = max(len(row["input_ids"]) for row in rows)
    assert batch.columns["input_ids"].dtype == np.int64
    assert batch.columns["input_ids"].tolist() == [
        row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows
    ]
    assert batch.row_lengths.tolist() == [len(row["input_ids"]) for row in rows]
    assert batch.seq_lengths.tolist() == [size for row in rows for size in row["seq_lengths"]]
    assert batch.seq_counts.tolist() == [2] * 4
    assert batch.padding().tolist() == [
        [False] * len(row["input_ids"]) + [True] * (longest - len(row["input_ids"])) for row in rows
    ]


def test_positions_of_a_batch_start_again_at_each_document_of_each_row(dataset):
    reader = RowReader(dataset)
    batch = reader.batch([4, 2])
    assert batch.position_ids().tolist() == [[0, 1, 2, 3, 0, 1, 2], [0, 1, 0, 1, 2, 0, 0]]
    even = reader.batch([4, 44])
    assert even.position_ids().tolist() == [[0, 1, 2, 3, 0, 1, 2]] * 2


def test_rows_without_lengths_are_one_document_each(dataset):
    batch = RowReader(dataset, ["input_ids"]).batch([1, 2])
    assert batch.seq_lengths.tolist() == [4, 5]
    assert batch.seq_counts.tolist() == [1, 1]


def test_a_data_loader_gets_whole_batches_in_worker_processes_too(dataset):
    torch = pytest.importorskip("torch", reason="the loader is torch's: pip install torch")
    reader = RowReader(dataset.shuffle(seed=1))
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(
            reader,
            batch_size=8,
            num_workers=workers,
            collate_fn=lambda batch: torch.from_numpy(batch.columns["input_ids"]),
        )
        batches = list(loader)
        assert [len(batch) for batch in batches] == [8] * 8 + [6]
        assert batches[3][0, :5].tolist() == reader[24]["input_ids"].tolist()[:5]


def test_reading_goes_on_at_any_row(dataset):
    reader = RowReader(dataset.shuffle(seed=7))
    whole = [reader.batch([i]).columns["input_ids"][0].tolist() for i in range(len(reader))]
    again = RowReader(dataset.shuffle(seed=7))
    assert [again.batch([i]).columns["input_ids"][0].tolist() for i in range(41, len(again))] == whole[41:]


def test_a_column_that_is_no_list_of_numbers_is_refused():
    with pytest.raises(ValueError, match="no list of numbers"):
        RowReader(Dataset.from_dict({"text": ["a"]}))


def test_positions_start_again_at_each_piece():
    assert position_ids(np.array([3, 1, 2], dtype=np.int32)).tolist() == [0, 1, 2, 0, 0, 1]
