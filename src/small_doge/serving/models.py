"""The models that a server offers: a fixed list, loaded when it starts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from small_doge.serving.batching import Batcher, BatchLimits
from small_doge.serving.errors import ApiError
from small_doge.serving.metrics import ModelMetrics
from small_doge.serving.text import TextCodec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from small_doge.inference.slots import SlotSession
    from small_doge.serving.grammar import GrammarCompiler

T = TypeVar("T")


class ServingEngine(Protocol):
    """What the server asks of an engine; `small_doge.inference.load` gives one."""

    tokenizer: PreTrainedTokenizerBase
    end_ids: tuple[int, ...]

    def new_session(self, batch: int) -> SlotSession:
        """Rows for `batch` sequences."""

    def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The mean of the last hidden states over each text's tokens: [n, d]."""


class ServedModel:
    """One model with its batcher.

    Args:
        name: The id that clients use.
        engine: Generates and embeds.
        context: Most tokens of a prompt and its completion together.
        vocab_size: Width of the logits.
        limits: Bounds of the batcher.
        metrics: The model's metrics.
    """

    def __init__(
        self,
        name: str,
        engine: ServingEngine,
        context: int,
        vocab_size: int,
        limits: BatchLimits,
        metrics: ModelMetrics,
    ) -> None:
        self.name, self.engine = name, engine
        self.context, self.vocab_size = context, vocab_size
        self.created = int(time.time())
        self.codec = TextCodec(engine.tokenizer)
        session = engine.new_session(limits.rows + limits.cache_rows)
        self.batcher = Batcher(session, self.codec, engine.end_ids, limits, metrics)
        # One thread: tokenizing is fast, and a long prompt must hold up neither the event loop nor the decoding.
        self._text_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"text-{name}")

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """Makes constraints for this model's tokenizer; only the text thread uses it."""
        from small_doge.serving.grammar import GrammarCompiler

        return GrammarCompiler(self.codec.serialized, self.vocab_size, self.engine.end_ids)

    async def in_text_thread(self, function: Callable[[], T]) -> T:
        """Run work on text beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._text_thread, function)

    async def embed(self, inputs: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Embeddings [n, d], made between two chunks of decoding."""
        return await asyncio.wrap_future(self.batcher.call(lambda: self.engine.embed(inputs)))

    def close(self) -> None:
        """Stop both threads."""
        self.batcher.close()
        self._text_thread.shutdown(cancel_futures=True)


class ModelList:
    """The models by name.

    Raises:
        ValueError: two of the same name, or none.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.name: model for model in models}
        if not models:
            raise ValueError("there is no model to serve: name at least one.")
        if len(self._models) < len(models):
            raise ValueError("two models have the same name: give one another as NAME=PATH.")

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def __getitem__(self, name: str) -> ServedModel:
        if name not in self._models:
            raise ApiError(
                404,
                f"There is no model {name[:200]!r}: this server has {', '.join(self._models)}.",
                param="model",
                code="model_not_found",
            )
        return self._models[name]


def split_name(spec: str) -> tuple[str, str]:
    """The name and place that `NAME=PLACE` or `PLACE` gives; a folder is named after itself, a hub id is its name.

    Raises:
        ValueError: an empty name or place.
    """
    name, equals, place = spec.partition("=")
    if not equals:
        place = spec
        name = Path(place).resolve().name if Path(place).is_dir() else place
    if not name or not place:
        raise ValueError(f"{spec!r} names no model: write PATH, or NAME=PATH.")
    return name, place


def local_folder(place: str) -> Path:
    """The folder of a checkpoint: `place` itself, or a copy of the hub's without anything that could run.

    Raises:
        ValueError: no such checkpoint, or one without safetensors.
    """
    from small_doge.inference import download

    folder = Path(place)
    if not folder.is_dir():
        folder = download(place)
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{place} holds no .safetensors file: save the model again with save_pretrained.")
    return folder


def load_model(
    spec: str, device: str, dtype: str | None, limits: BatchLimits, metrics: Callable[[str], ModelMetrics]
) -> ServedModel:
    """Load what `NAME=PLACE` or `PLACE` names.

    Raises:
        ValueError: as `split_name`, `local_folder` and `small_doge.inference.load`.
    """
    from transformers import AutoConfig

    from small_doge.inference import load

    name, place = split_name(spec)
    folder = local_folder(place)
    config = AutoConfig.from_pretrained(folder)
    engine: Any = load(str(folder), device, dtype)
    return ServedModel(name, engine, config.max_position_embeddings, config.vocab_size, limits, metrics(name))
