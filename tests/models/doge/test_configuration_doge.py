import json
import subprocess
import sys

import pytest
from transformers import AutoConfig

from small_doge import DogeConfig
from small_doge.models.doge.configuration_doge import SIZES


@pytest.mark.parametrize("size", SIZES)
def test_a_size_is_found_with_and_without_the_family_name(size):
    assert DogeConfig.from_size(size).to_dict() == DogeConfig.from_size(f"Doge-{size}").to_dict()


def test_an_unknown_size_is_refused_with_the_list_of_sizes():
    with pytest.raises(ValueError, match=r"no size '7B': choose one of 20M, 60M"):
        DogeConfig.from_size("7B")


def test_overrides_win_over_the_table():
    assert DogeConfig.from_size("20M", vocab_size=100, keep_window_size=64).keep_window_size == 64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 65}, "not a multiple of num_attention_heads 4: change one"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3: change one"),
        ({"hidden_size": 60}, "head size 15 is odd.*make it even"),
        ({"keep_window_size": 0}, "keep_window_size is 0: a query must see at least 1 key"),
        (
            {"attention_dropout": 0.1},
            "no backend drops attention weights .all would have to drop the same.*set it to 0",
        ),
        ({"sliding_window": 128}, "remove sliding_window"),
        ({"is_moe": True, "num_experts": 512}, "512 is not a perfect square: the nearest are 484 and 529"),
        ({"is_moe": True, "num_experts": 4, "num_experts_per_tok": 5}, "5 is more than num_experts 4: lower it"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)
def test_an_impossible_configuration_is_refused(fields, message, make_config):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


def saved(config, folder):
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def test_a_dense_file_has_no_key_that_transformers_does_not_know(make_config, tmp_path):
    fields = saved(make_config(), tmp_path)
    assert not {"legacy_routing", "qk_norm", "score_per_query_head"} & fields.keys()


def test_a_mixture_says_how_it_routes_and_reads_it_back(make_config, tmp_path, caplog):
    assert saved(make_config("mixture"), tmp_path)["legacy_routing"] is False
    assert AutoConfig.from_pretrained(tmp_path).legacy_routing is False
    assert "legacy_routing" not in caplog.text


@pytest.fixture
def unsaid(make_config, tmp_path):
    fields = saved(make_config("mixture"), tmp_path)
    del fields["legacy_routing"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return tmp_path


def warnings_of(capture, monkeypatch, action):
    from small_doge.models.doge import configuration_doge

    monkeypatch.setattr(configuration_doge.logger, "warning", lambda text: capture.append(text))
    return action()


def test_a_mixture_that_does_not_say_is_read_as_legacy_with_one_warning(unsaid, monkeypatch):
    said = []
    config = warnings_of(said, monkeypatch, lambda: AutoConfig.from_pretrained(unsaid))
    assert config.legacy_routing is True
    assert len(said) == 1 and "not causal" in said[0] and "legacy_routing=False" in said[0]


def test_the_caller_can_say_how_a_mixture_routes(unsaid, monkeypatch):
    said = []
    config = warnings_of(said, monkeypatch, lambda: AutoConfig.from_pretrained(unsaid, legacy_routing=False))
    assert config.legacy_routing is False and not said


def test_the_oldest_layout_is_written_and_read_back(make_config, tmp_path):
    saved(make_config("scores_per_query_head"), tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.qk_norm, config.score_per_query_head) == (False, True)


def test_importing_the_package_and_its_command_line_is_light():
    heavy = ("trl", "fastapi", "uvicorn", "gradio", "datasets", "transformers.modeling_utils", "torch._dynamo")
    code = f"import small_doge, small_doge.cli, sys; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
