"""Engines for the tests: one that says what it is told, and one around a tiny model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from small_doge import DogeForCausalLM
from small_doge.inference.slots import Generation
from small_doge.inference.torch_slots import TorchSlots


class EchoSession:
    """A session whose reply is the last user's message, token for token, and then the end token.

    A prompt without a conversation is repeated from its beginning. `seconds` is the time of a token; `log` notes the
    calls as (name, rows, tokens).
    """

    def __init__(self, batch: int, tokenizer: Any, seconds: float = 0.0) -> None:
        self.batch, self.seconds = batch, seconds
        self.vocab = len(tokenizer)
        self.eos, self.eot = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")
        self.end_header = tokenizer.convert_tokens_to_ids("<|end_header_id|>")
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        self.made = [0] * batch
        self.log: list[tuple[str, tuple[int, ...], int]] = []
        self.fail = False

    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> np.ndarray:
        self.log.append(("prefill", tuple(rows), sum(map(len, prompts))))
        for prompt, row in zip(prompts, rows, strict=True):
            self.rows[row] += list(prompt)
            self.made[row] = 0
        return self._logits(rows)

    def step(self, tokens: Sequence[int], rows: Sequence[int]) -> np.ndarray:
        self._work("step", rows, 1)
        for token, row in zip(tokens, rows, strict=True):
            self.rows[row].append(token)
            self.made[row] += 1
        return self._logits(rows)

    def decode(
        self, n_tokens: int, sampling: Any, stop_ids: Sequence[Sequence[int]], rows: Sequence[int]
    ) -> Generation:
        self._work("decode", rows, n_tokens)
        tokens = np.full((len(rows), n_tokens), -1, dtype=np.int32)
        lengths = np.zeros(len(rows), dtype=np.int32)
        stopped = np.zeros(len(rows), dtype=bool)
        for i, row in enumerate(rows):
            for at in range(n_tokens):
                token = self._next(row)
                self.rows[row].append(token)
                self.made[row] += 1
                tokens[i, at], lengths[i] = token, at + 1
                if token in stop_ids[i]:
                    stopped[i] = True
                    break
        return Generation(tokens, np.zeros(tokens.shape, np.float32), lengths, stopped)

    def reset(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.rows[row], self.made[row] = [], 0

    def length(self, row: int) -> int:
        return len(self.rows[row])

    def copy(self, source: int, target: int) -> None:
        self.rows[target], self.made[target] = list(self.rows[source]), self.made[source]

    def _work(self, name: str, rows: Sequence[int], tokens: int) -> None:
        self.log.append((name, tuple(rows), tokens))
        if self.fail:
            raise ValueError("the engine was told to fail")
        time.sleep(self.seconds * tokens)

    def _next(self, row: int) -> int:
        made = self.made[row]
        prompt = self.rows[row][: len(self.rows[row]) - made]
        reply = prompt
        if self.eot in prompt:
            end = len(prompt) - 1 - prompt[::-1].index(self.eot)
            reply = prompt[:end]
            # A prompt of bare token ids may end a turn that has no header.
            if self.end_header in reply:
                reply = reply[end - reply[::-1].index(self.end_header) :]
        return reply[made] if made < len(reply) else self.eos

    def _logits(self, rows: Sequence[int]) -> np.ndarray:
        logits = np.zeros((len(rows), self.vocab), dtype=np.float32)
        for i, row in enumerate(rows):
            logits[i, self._next(row)] = 20
        return logits


class EchoEngine:
    """An engine with one echo session."""

    def __init__(self, tokenizer: Any, seconds: float = 0.0) -> None:
        self.tokenizer, self.seconds = tokenizer, seconds
        self.end_ids = (tokenizer.eos_token_id,)
        self.session: EchoSession | None = None

    def new_session(self, batch: int) -> EchoSession:
        self.session = EchoSession(batch, self.tokenizer, self.seconds)
        return self.session

    def embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        return np.array([[len(ids), ids[-1]] for ids in texts], dtype=np.float32)


class TinyEngine:
    """An engine around a tiny Doge in torch."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self.model = DogeForCausalLM.from_pretrained(str(folder)).eval()
        self.end_ids = (self.tokenizer.eos_token_id,)

    def new_session(self, batch: int) -> TorchSlots:
        return TorchSlots(self.model, batch)

    @torch.inference_mode()
    def embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        states = [self.model.model(torch.tensor([list(ids)])).last_hidden_state[0].mean(0) for ids in texts]
        return torch.stack(states).numpy()
