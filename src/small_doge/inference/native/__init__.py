"""The native CPU core: Doge inference in C++ with its own quantized weights and bounded caches.

`is_available()` says whether the compiled module is here; without it the package generates through torch.
"""

import importlib
import math
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from small_doge.inference.native.checkpoint import (
    SOURCE_CODES,
    Shape,
    StoredTensor,
    map_checkpoint,
    map_packed,
    read_shape,
    write_packed,
)
from small_doge.inference.sampling import SamplingParams
from small_doge.inference.slots import Generation

_core: Any = None
_reason = ""
try:
    _core = importlib.import_module("small_doge.inference.native._core")
except ModuleNotFoundError:
    _reason = "the native core is not built; install a C++17 compiler and reinstall small-doge"
except ImportError as error:
    _reason = f"the native core does not load ({error}); reinstall small-doge on this machine"

__all__ = ["Generation", "NativeModel", "NativeSession", "available_isas", "is_available", "reason"]

DTYPES = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3}
# Each thread wants a few megabytes of weights a token, or the barriers cost more than it brings.
BYTES_PER_THREAD = 4 << 20
MOST_DRAFTS = 32


def is_available() -> bool:
    """Whether the compiled core can be used in this installation."""
    return _core is not None


def reason() -> str:
    """Why `is_available()` is false, in one line; empty when it is true."""
    return _reason


def available_isas() -> list[str]:
    """Instruction sets that this build holds and this CPU runs, best first; "plain" is always among them."""
    _require()
    return _core.available_isas()


def _require() -> None:
    if _core is None:
        raise ValueError(_reason)


class NativeModel:
    """A Doge model packed for the CPU. Build it with `load`; generate through `new_session`."""

    def __init__(
        self, core: Any, shape: Shape, dtype: str, drafts: int = 0, draft_model: "NativeModel | None" = None
    ) -> None:
        self._core = core
        self.shape = shape
        self.dtype = dtype
        self.drafts = drafts
        self._draft_model = draft_model

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        dtype: str = "int8",
        threads: int | None = None,
        isa: str | None = None,
        head_dtype: str | None = None,
        drafts: int = 0,
        draft_model: str | os.PathLike[str] | None = None,
    ) -> "NativeModel":
        """Loads a Hugging Face folder, packing its weights as `dtype`, or a file that `save` wrote, as it is.

        dtype: "fp32", "bf16", "int8" (8-bit weights and activations) or "int4" (4-bit weights, 8-bit activations).
        threads: by default the cores this process may use, fewer for a small model. isa: an entry of
        `available_isas()`; by default the best. head_dtype: the type of the output head; by default dtype, and int8
        for "int4". drafts: how many tokens `decode` guesses and checks in one step; it draws the same tokens as
        without. They come from draft_model, a smaller model with the same vocabulary, which is loaded in the same way
        and takes turns with the same threads; if there is none, from what a row holds already. Raises ValueError for
        a checkpoint or an option that the core does not support.
        """
        _require()
        path = Path(path)
        for name in (dtype, head_dtype or dtype):
            if name not in DTYPES:
                raise ValueError(f"dtype={name!r} is unknown; take one of {', '.join(DTYPES)}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads={threads} must be at least 1")
        if not 0 <= drafts <= MOST_DRAFTS:
            raise ValueError(f"drafts={drafts}: give 0 (off) to {MOST_DRAFTS}")
        if draft_model is not None and not drafts:
            raise ValueError(f"draft_model needs drafts, the tokens that it guesses at a time: give 1 to {MOST_DRAFTS}")
        core, shape, dtype = cls._load(path, dtype, threads, isa, head_dtype, None)
        if draft_model is None:
            return cls(core, shape, dtype, drafts)
        small = cls(*cls._load(Path(draft_model), dtype, threads, isa, head_dtype, core))
        if small.shape.vocab != shape.vocab:
            raise ValueError(
                f"{draft_model} has a vocabulary of {small.shape.vocab} tokens and {path} of {shape.vocab}: take a "
                "draft model with the same tokenizer"
            )
        return cls(core, shape, dtype, drafts, small)

    @staticmethod
    def _load(
        path: Path, dtype: str, threads: int | None, isa: str | None, head_dtype: str | None, beside: Any
    ) -> tuple[Any, Shape, str]:
        """The core, the shape and the type of one model; beside another core, it runs on that one's threads."""
        if path.is_file():
            entries, shape, dtype = map_packed(path)
            core = _make_core(shape, threads, sum(e[5].size for e in entries), isa, beside)
            for entry in entries:
                core.adopt(*entry)
        elif path.is_dir():
            shape = read_shape(path)
            tensors = map_checkpoint(path)
            sizes = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.6}
            parameters = sum(math.prod(t.shape) for t in tensors.values())
            core = _make_core(shape, threads, int(parameters * sizes[dtype]), isa, beside)
            _pack(core, tensors, shape, dtype, head_dtype or ("int8" if dtype == "int4" else dtype))
        else:
            raise ValueError(f"{path} does not exist; give a checkpoint folder or a saved native model")
        core.finish()
        return core, shape, dtype

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the packed weights as one file, which `load` memory-maps: the same file serves every CPU."""
        write_packed(Path(path), self._core.entries(), self.shape, self.dtype)

    def new_session(self, batch: int = 1, longest: int | None = None, max_slots: int | None = None) -> "NativeSession":
        """Empty caches for `batch` sequences. max_slots narrows the model's keep window; longest only saves memory:
        a sequence of no more tokens than that never needs more slots.
        """
        for name, value in {"batch": batch, "longest": longest, "max_slots": max_slots}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        slots = min(n for n in (self.shape.window, longest, max_slots) if n is not None)
        draft_core = self._draft_model and self._draft_model._core
        return NativeSession(_core.Session(self._core, batch, slots, self.drafts, draft_core), self.shape.vocab)

    def hidden(self, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The last hidden states, float32 [T, d], of each prompt, after the final norm."""
        session = _core.Session(self._core, 1, self.shape.window)
        states = []
        for prompt in prompts:
            session.reset([0])
            states.append(session.prefill([0], [[int(token) for token in prompt]], "hidden"))
        return states

    @property
    def isa(self) -> str:
        return self._core.isa

    @property
    def threads(self) -> int:
        return self._core.threads

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights; a token reads about this much (an untied embedding and idle experts aside)."""
        return self._core.bytes


class NativeSession:
    """Sequences in flight, each with its own length and bounded cache. `rows` selects some of them; default all."""

    def __init__(self, session: Any, vocab: int) -> None:
        self._session = session
        self._vocab = vocab

    def prefill(
        self, prompts: Sequence[Sequence[int]], rows: Sequence[int] | None = None, all_positions: bool = False
    ) -> np.ndarray | list[np.ndarray]:
        """Appends prompts[i] to row rows[i]; prompts may differ in length, and a row may be continued.

        Returns float32 logits of each row's last position [rows, vocab], or with all_positions a list of
        [length, vocab] arrays. Raises ValueError for ids outside the vocabulary and for empty prompts.
        """
        at = self._rows(rows)
        lists = [[int(token) for token in prompt] for prompt in prompts]
        every = self._session.prefill(at, lists, "logits" if all_positions else "")
        if not all_positions:
            return self._session.logits(at)
        return np.split(every, np.cumsum([len(prompt) for prompt in lists])[:-1])

    def step(self, tokens: Sequence[int], rows: Sequence[int] | None = None) -> np.ndarray:
        """Appends one given token to each row and returns the next logits, float32 [rows, vocab]."""
        at = self._rows(rows)
        self._session.step(at, [int(token) for token in tokens])
        return self._session.logits(at)

    def decode(
        self,
        n_tokens: int,
        sampling: Sequence[SamplingParams] | None = None,
        stop_ids: Sequence[Sequence[int]] | None = None,
        rows: Sequence[int] | None = None,
    ) -> Generation:
        """Draws up to n_tokens for each row; call again to go on where the rows stand.

        sampling and stop_ids: one entry a row; by default greedy, and nothing stops. A draw depends on the row's seed
        and the position alone.
        """
        if n_tokens < 1:
            raise ValueError(f"n_tokens={n_tokens} must be at least 1")
        at = self._rows(rows)
        each = [SamplingParams()] * len(at) if sampling is None else sampling
        how = [(s.temperature, s.top_k, s.top_p, s.min_p, s.repetition_penalty, _seed(s)) for s in each]
        stops = [[]] * len(at) if stop_ids is None else [list(ids) for ids in stop_ids]
        tokens, logprobs, lengths, stopped = self._session.decode(at, n_tokens, how, stops)
        return Generation(tokens, logprobs, lengths, stopped.astype(bool))

    def copy(self, source: int, target: int) -> None:
        """Makes row target a copy of row source: its keys, its last logits and what waits to be fed."""
        self._session.copy(source, target)

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Empties rows, so that other sequences can take their place."""
        self._session.reset(self._rows(rows))

    def length(self, row: int) -> int:
        """Tokens of the row that went through the layers (a token just drawn is not yet among them)."""
        return self._session.length(row)

    @property
    def batch(self) -> int:
        return self._session.batch

    @property
    def steps(self) -> int:
        """Runs through the layers that `decode` took so far; with guesses, fewer than it drew tokens."""
        return self._session.steps

    @property
    def guesses(self) -> int:
        """Tokens that were guessed and checked in these runs; each that was right saved one."""
        return self._session.guesses

    @property
    def slots(self) -> int:
        """Keys that each key/value head keeps."""
        return self._session.slots

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of cache, a draft model's among them: reserved (address space; pages come as slots fill) and held by
        keys now.
        """
        return {"cache_reserved": self._session.cache_bytes, "cache_used": self._session.cache_bytes_used}

    def _rows(self, rows: Sequence[int] | None) -> list[int]:
        return list(range(self.batch)) if rows is None else list(rows)


def _seed(how: SamplingParams) -> int:
    return (secrets.randbits(64) if how.seed is None else how.seed) & (2**64 - 1)


def _make_core(shape: Shape, threads: int | None, weight_bytes: int, isa: str | None, beside: Any) -> Any:
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, min(cores, weight_bytes // BYTES_PER_THREAD))
    fields = {**vars(shape), "inv_freq": list(shape.inv_freq)}
    return _core.Core(**fields, threads=threads, isa=isa or "", beside=beside)


def _pack(core: Any, tensors: dict[str, StoredTensor], shape: Shape, dtype: str, head_dtype: str) -> None:
    """Hands every tensor of a checkpoint to the core under the core's names."""
    code = DTYPES[dtype]
    half = min(
        code, DTYPES["bf16"]
    )  # routing decides between experts, and their rows are read singly: never below bf16

    def tensor(name: str) -> StoredTensor:
        if name not in tensors:
            raise ValueError(f"the checkpoint has no {name}; it is incomplete or not a Doge")
        return tensors[name]

    def matrix(to: str, names: Sequence[str], type_code: int) -> None:
        parts = [tensor(name) for name in names]
        core.add_matrix(to, [(p.data, SOURCE_CODES[p.dtype], p.shape[0]) for p in parts], parts[0].shape[1], type_code)

    def table(to: str, name: str, type_code: int = 0) -> None:
        t = tensor(name)
        rows, cols = t.shape if type_code else (1, math.prod(t.shape))
        core.add_table(to, t.data, SOURCE_CODES[t.dtype], rows, cols, type_code)

    for i in range(shape.layers):
        at, source = f"layers.{i}.", f"model.layers.{i}."
        for name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            table(at + name.removesuffix(".weight"), source + name)
        for name in ("input_residual", "post_attention_residual"):
            table(at + name, source + name)
        for name in ("q_norm.weight", "k_norm.weight", "A", "dt_proj.weight"):
            table(at + name.removesuffix(".weight"), f"{source}self_attn.{name}")
        matrix(at + "qkv", [f"{source}self_attn.{p}_proj.weight" for p in "qkv"], code)
        matrix(at + "o_proj", [f"{source}self_attn.o_proj.weight"], code)
        for name in ("gate_proj", "up_proj", "down_proj"):
            matrix(at + name, [f"{source}mlp.{name}.weight"], code)
        if shape.experts:
            matrix(at + "router_gate", [f"{source}mlp.router_gate.weight"], half)
            for name in ("down_embed", "up_embed"):
                embed = tensor(f"{source}mlp.{name}.weight")
                core.add_table(at + name, embed.data, SOURCE_CODES[embed.dtype], *embed.shape, half)
    table("norm", "model.norm.weight")
    embedding = tensor("model.embed_tokens.weight")
    tied = "lm_head.weight" not in tensors
    matrix("lm_head", ["model.embed_tokens.weight" if tied else "lm_head.weight"], DTYPES[head_dtype])
    if not tied:
        core.add_table("embed_tokens", embedding.data, SOURCE_CODES[embedding.dtype], *embedding.shape, half)
