"""The benchmark beside llama.cpp writes its rows, and refuses where the Llama is another one or llama.cpp is absent."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from small_doge.models.doge.configuration_doge import DogeSize

HERE = all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf"))


class Stub:
    """What the benchmark asks of llama.cpp, answered by transformers."""

    def __init__(self, path: Path, threads: int) -> None:
        self.model = LlamaForCausalLM.from_pretrained(path.with_suffix(""))

    def prefill(self, ids: list[int]) -> None:
        self.ids = ids

    @torch.no_grad()
    def logits(self) -> np.ndarray:
        return self.model(torch.tensor([self.ids])).logits[0, -1].numpy()

    def decode(self, new_tokens: int) -> list[int]:
        return self.model.generate(torch.tensor([self.ids]), max_new_tokens=new_tokens)[0].tolist()

    def close(self) -> None:
        pass


def write_stub(model: LlamaForCausalLM, path: Path, kind: str) -> None:
    path.write_bytes(b"")
    model.save_pretrained(path.with_suffix(""))


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The benchmark as a module, with a command line for two rounds of one tiny shape."""
    folder = Path(__file__).parents[3] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    script = importlib.import_module("cpu_llama_cpp")
    monkeypatch.setitem(script.SIZES, "tiny", DogeSize(2, 64, 128, 2, 1))
    options = f"--sizes tiny --dtypes int8 int4 --threads 1 --tokens 4 --rounds 2 --out {tmp_path / 'rows.json'}"
    monkeypatch.setattr(sys, "argv", ["cpu_llama_cpp.py", *options.split()])
    return script


@pytest.fixture
def stubbed(script: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The same with transformers in llama.cpp's place."""
    monkeypatch.setattr(script, "api", object())
    monkeypatch.setattr(script, "LlamaCpp", Stub)
    monkeypatch.setattr(script, "write_gguf", write_stub)
    return script


def check_rows(tmp_path: Path, printed: str) -> None:
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert json.loads(printed.splitlines()[-1]) == rows
    rates = {row["variant"] for row in rows if row["metric"] == "tokens/s"}
    assert rates == {"int8, 1 threads", "int4, 1 threads", "llama.cpp Q8_0, 1 threads", "llama.cpp Q4_0, 1 threads"}
    ratios = {row["variant"]: row["n"] for row in rows if row["metric"] == "times llama.cpp"}
    assert ratios == {"int8, 1 threads": 2, "int4, 1 threads": 2}


def test_every_variant_has_its_rows(
    stubbed: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stubbed.main()
    check_rows(tmp_path, capsys.readouterr().out)


def test_nothing_is_timed_where_the_llama_is_another(
    stubbed: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_another(model: LlamaForCausalLM, path: Path, kind: str) -> None:
        torch.manual_seed(1)
        write_stub(LlamaForCausalLM(model.config), path, kind)

    monkeypatch.setattr(stubbed, "write_gguf", write_another)
    with pytest.raises(SystemExit, match=r"differ by .*; nothing is timed"):
        stubbed.main()


@pytest.mark.skipif(HERE, reason="llama-cpp-python and gguf are installed here")
def test_without_llama_cpp_it_says_what_to_install(script: types.ModuleType) -> None:
    with pytest.raises(SystemExit, match="pip install llama-cpp-python gguf"):
        script.main()


@pytest.mark.skipif(not HERE, reason="needs llama-cpp-python and gguf: pip install llama-cpp-python gguf")
def test_llama_cpp_itself_runs_the_llama_that_is_written(
    script: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main()
    check_rows(tmp_path, capsys.readouterr().out)
