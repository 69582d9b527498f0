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


def test_a_column_that_is_no_list_of_numbers_is_refused():
    with pytest.raises(ValueError, match="no list of numbers"):
        RowReader(Dataset.from_dict({"text": ["a"]}))


def test_positions_start_again_at_each_piece():
    assert position_ids(np.array([3, 1, 2], dtype=np.int32)).tolist() == [0, 1, 2, 0, 0, 1]
