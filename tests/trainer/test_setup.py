"""What a stage is given is checked before it trains: model, tokenizer and data must belong together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetDict

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.processor.tokenizer import train_tokenizer
from small_doge.trainer.setup import (
    check_chat_template,
    check_columns,
    check_token_ids,
    compile_layers,
    evaluation_rows,
    load_data,
    load_model,
    load_tokenizer,
)

CONFIG = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}

CHATS = Dataset.from_dict({"messages": [[{"role": "user", "content": "Hi"}]]})


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["The quick brown fox jumps over the lazy dog."] * 4, 300)


@pytest.fixture(scope="module")
def small_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    DogeForCausalLM(DogeConfig(vocab_size=64, **CONFIG)).save_pretrained(folder)
    return str(folder)


def arguments(**fields: object) -> SimpleNamespace:
    names = ("model_name_or_path", "model_config", "tokenizer_name_or_path", "dataset", "datasets_and_ratios")
    return SimpleNamespace(**{**dict.fromkeys(names), "seed": 0, "compile_layers": False, **fields})


def rows_with_a_foreign_token() -> None:
    check_token_ids(Dataset.from_dict({"input_ids": [[1, 2], [3, 900]]}), 64, "rows")


def a_tokenizer_that_pads_with_its_end(tokenizer, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(
        (folder / "tokenizer_config.json").read_text().replace(tokenizer.pad_token, tokenizer.eos_token)
    )
    load_tokenizer(arguments(tokenizer_name_or_path=str(folder)))


@pytest.mark.parametrize(
    ("use", "mend"),
    [
        (lambda t, m, d: load_model(arguments(model_name_or_path=m), t), "64 tokens and the tokenizer.*use the token"),
        (lambda t, m, d: rows_with_a_foreign_token(), "token id 900, the model has 64.*prepare the data"),
        (lambda t, m, d: load_model(arguments(), t), "set either"),
        (lambda t, m, d: load_model(arguments(model_config={**CONFIG, "hiden_size": 3}), t), "no field 'hiden_size'"),
        (lambda t, m, d: a_tokenizer_that_pads_with_its_end(t, d), "padding token that is not its end"),
        (lambda t, m, d: load_tokenizer(arguments()), "set tokenizer_name_or_path"),
        (lambda t, m, d: check_chat_template(SimpleNamespace(chat_template=None, name_or_path="x")), "set chat_templ"),
        (lambda t, m, d: load_data(arguments(dataset=str(d / "none")), dict, t), "prepare one with"),
        (lambda t, m, d: load_data(arguments(dataset=str(d)), dict, t), "prepare it with"),
        (lambda t, m, d: check_token_ids(CHATS, 64, "chats"), "chats has no rows of tokens.*of the stage pt"),
        (lambda t, m, d: check_columns(CHATS, ["chosen", "rejected"]), "needs chosen and rejected: prepare"),
        (lambda t, m, d: load_tokenizer(arguments(model_name_or_path=str(d / "none"))), "there is no folder"),
    ],
    ids=[
        "a vocabulary smaller than the tokenizer's",
        "rows of another tokenizer",
        "no model at all",
        "a field that DogeConfig lacks",
        "padding that is the end token",
        "no tokenizer",
        "no chat template",
        "no data set folder",
        "a folder that is no data set",
        "chats in pretraining",
        "chats in preference optimization",
        "no model folder",
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    use: Callable[..., object], mend: str, tokenizer, small_vocabulary: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=mend) as error:
        use(tokenizer, small_vocabulary, tmp_path)
    assert "\n" not in str(error.value)


def test_data_without_a_test_split_are_trained_on_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    rows = DatasetDict(train=Dataset.from_dict({"input_ids": [[1, 2]]}))
    args = SimpleNamespace(eval_strategy="epoch", eval_on_start=True)
    assert evaluation_rows(args, rows) is None
    assert (args.eval_strategy, args.eval_on_start) == ("no", False)
    assert "no test split, so nothing is held out: set test_share when preparing it" in caplog.text


@pytest.mark.parametrize("gpu", [True, False])
def test_the_norm_behind_the_layers_is_compiled_for_a_gpu_alone(gpu, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("shutil.which", lambda name: name)
    model = DogeForCausalLM(DogeConfig(vocab_size=64, **CONFIG))
    compile_layers(model)
    assert all(layer._compiled_call_impl is not None for layer in model.model.layers)
    assert (model.model.norm._compiled_call_impl is not None) == gpu
