from __future__ import annotations

import pytest

from small_doge.processor.arguments import check_arguments

SOUND = {
    "datasets_and_ratios": [{"a": 1.0}],
    "total_sample_size": None,
    "max_length": 2048,
    "packing": True,
    "dataset_num_proc": 2,
    "seed": 233,
    "ratio_by": "tokens",
    "test_share": 0.01,
    "test_sample_size": 1000,
    "repeat": False,
    "shuffle": True,
    "source_options": None,
}


@pytest.mark.parametrize("change", [{}, {"total_sample_size": -1}, {"test_share": 0}, {"source_options": {"a": {}}}])
def test_sound_arguments_pass(change):
    check_arguments({**SOUND, **change})


@pytest.mark.parametrize(
    ("change", "mend"),
    [
        ({"max_length": "2k"}, "max_length is '2k': give a whole number of at least 2"),
        ({"max_length": 1}, "at least 2"),
        ({"dataset_num_proc": True}, "at least 1"),
        ({"seed": -1}, "at least 0"),
        ({"test_sample_size": 2.5}, "at least 0"),
        ({"total_sample_size": 0}, "or -1 for as many as the ratios allow"),
        ({"total_sample_size": "all"}, "or -1 for as many as the ratios allow"),
        ({"packing": "yes"}, "packing is 'yes': give true or false"),
        ({"apply_chat_template": 1}, "give true or false"),
        ({"ratio_by": "bytes"}, "'tokens' or 'rows'"),
        ({"test_share": "1%"}, "share from 0 to below 1"),
        ({"source_options": ["a"]}, "give a mapping"),
        ({"source_options": {"a": 3}}, "give a mapping"),
        ({"source_options": {"b": {}}}, "names 'b', which is not mixed: give one of a"),
    ],
    ids=str,
)
def test_an_argument_that_cannot_be_meant_names_the_mend(change, mend):
    with pytest.raises(ValueError, match=mend):
        check_arguments({**SOUND, **change})
