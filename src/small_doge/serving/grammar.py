"""Replies held to a form: JSON, a JSON schema, or calls of functions; through llguidance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from small_doge.serving.reply import CALL_CLOSING, CALL_OPENING

# A schema comes from a stranger: llguidance's own bounds on grammar size and fuel, lowered.
LIMITS = LLParserLimits(max_grammar_size=100_000, max_lexer_states=50_000, verbose_errors=False)
# The form of `json.dumps`, which the chat template writes too. Free white space invites a small model to go on with it.
FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
OBJECT = {"type": "object"}


class Constraint:
    """Which tokens may come next in one completion.

    Args:
        matcher: Follows the completion through the grammar.
        vocab_size: Width of the logits.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def copy(self) -> Constraint:
        """The same grammar at the same place, for another completion."""
        return Constraint(self._matcher.deep_copy(), self._vocab_size)

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next: bool [V]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        mask = np.zeros(self._vocab_size, dtype=np.bool_)
        unpacked = np.unpackbits(bits, bitorder="little")[: self._vocab_size]
        mask[: len(unpacked)] = unpacked
        return mask

    def take(self, token: int) -> None:
        """Go on past a token that was allowed.

        Raises:
            RuntimeError: llguidance gave up, for example on a grammar that outgrew its bounds.
        """
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"the grammar does not go on: {self._matcher.get_error()}")

    @property
    def finished(self) -> bool:
        """Whether nothing more may come."""
        return self._matcher.is_stopped()


class GrammarCompiler:
    """Makes constraints for one model.

    Args:
        tokenizer: The tokenizer as JSON (`TextCodec.serialized`).
        vocab_size: Width of the logits.
        end_ids: Tokens that end a completion.
    """

    def __init__(self, tokenizer: str, vocab_size: int, end_ids: Sequence[int]) -> None:
        self._vocab_size = vocab_size
        # llguidance names a tag that is one token by itself, and would never match it as text.
        self._tags = {token["content"] for token in json.loads(tokenizer)["added_tokens"]}
        self._tokenizer = LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=list(end_ids))

    def json_schema(self, schema: dict[str, Any]) -> Constraint:
        """A value of a JSON schema; `{"type": "object"}` is any object.

        Raises:
            ValueError: a schema that llguidance does not know or that is too large.
        """
        return self._compile(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=FORM))

    def calls(self, tools: Sequence[dict[str, Any]], several: bool) -> Constraint:
        """One call of one of the functions `{"name", "parameters"}`, or several.

        Raises:
            ValueError: as `json_schema`, for the parameters of a function.
        """
        forms = [
            {
                "type": "object",
                "properties": {"name": {"const": tool["name"]}, "arguments": tool.get("parameters") or OBJECT},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in tools
        ]
        schema = json.dumps({"x-guidance": FORM, "anyOf": forms})
        opening, closing = (tag if tag in self._tags else f'"{tag}"' for tag in (CALL_OPENING, CALL_CLOSING))
        start = "start: call+" if several else "start: call"
        return self._compile(
            LLMatcher.grammar_from_lark(f"{start}\ncall: {opening} body {closing}\nbody: %json {schema}")
        )

    def _compile(self, grammar: str) -> Constraint:
        if problem := LLMatcher.validate_grammar(grammar, self._tokenizer, limits=LIMITS):
            raise ValueError(f"this schema cannot be followed: {' '.join(problem.split())[:300]}")
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise ValueError(f"this schema cannot be followed: {' '.join(matcher.get_error().split())[:300]}")
        return Constraint(matcher, self._vocab_size)
