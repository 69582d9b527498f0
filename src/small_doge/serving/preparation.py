"""From the body of a request to completions that the batcher can make."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from small_doge.serving.choice import TokenRules
from small_doge.serving.errors import ApiError, refused
from small_doge.serving.grammar import Constraint
from small_doge.serving.models import ServedModel
from small_doge.serving.schemas import (
    AssistantMessage,
    ChatRequest,
    CompletionBody,
    EmbeddingRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    NamedTool,
    Sampling,
    Text,
    ToolMessage,
)
from small_doge.serving.settings import ServerSettings
from small_doge.serving.tickets import CompletionRequest


@dataclass(frozen=True)
class PreparedChat:
    """A chat request, ready to run.

    Args:
        completions: One for each of the `n` replies.
        thinking: Whether the prompt opens a thought.
        functions: Names of the functions that may be called; None where none may.
        several_calls: Whether a reply may have more than one call.
    """

    completions: list[CompletionRequest]
    thinking: bool
    functions: frozenset[str] | None
    several_calls: bool


def prepare_chat(model: ServedModel, request: ChatRequest, settings: ServerSettings) -> PreparedChat:
    """Render, encode and check a chat request; in the model's text thread.

    Raises:
        ApiError: what is asked cannot be done; 400.
    """
    may_call = bool(request.tools) and request.tool_choice != "none"
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or ()] if may_call else None
    options = request.chat_template_kwargs
    messages = [_plain(message) for message in request.messages]
    _refuse_control_tokens(model, messages)
    try:
        prompt, thinking = model.codec.render(messages, tools, options.enable_thinking if options else None)
    except ValueError as error:
        raise refused(str(error), "messages") from None
    top = (request.top_logprobs or 0) if request.logprobs else None
    rules = _rules(model, request, top)
    rules = replace(rules, constraint=_constraint(model, request), free_until=b"</think>" if thinking else b"")
    return PreparedChat(
        completions=_completions(model, [prompt], request, rules, request.limit, settings),
        thinking=thinking,
        functions=frozenset(tool.function.name for tool in request.tools or ()) if may_call else None,
        several_calls=request.parallel_tool_calls is not False,
    )


def prepare_completions(
    model: ServedModel, request: CompletionBody, settings: ServerSettings
) -> list[CompletionRequest]:
    """Encode and check a completion request; in the model's text thread. Prompt i has the completions from i * n on.

    Raises:
        ApiError: what is asked cannot be done; 400.
    """
    prompts = [model.codec.encode(p) if isinstance(p, str) else _checked_ids(model, p) for p in request.prompts]
    rules = _rules(model, request, request.logprobs)
    return _completions(model, prompts, request, rules, request.max_tokens, settings)


def prepare_inputs(model: ServedModel, request: EmbeddingRequest) -> list[list[int]]:
    """Encode and check the inputs of an embedding request; in the model's text thread.

    Raises:
        ApiError: an input is too long or has ids that the model does not know; 400.
    """
    inputs = [model.codec.encode(p) if isinstance(p, str) else _checked_ids(model, p) for p in request.inputs]
    longest = max(map(len, inputs))
    if longest > model.context:
        raise _too_long(model, longest, 0, "input")
    return inputs


def _completions(
    model: ServedModel,
    prompts: Sequence[Sequence[int]],
    request: Sampling,
    rules: TokenRules,
    limit: int | None,
    settings: ServerSettings,
) -> list[CompletionRequest]:
    n = request.n or 1
    if n * len(prompts) > settings.max_choices:
        raise refused(
            f"the request asks for {n * len(prompts)} completions: this server makes {settings.max_choices} at once.",
            "n",
        )
    if limit is not None and limit > settings.max_completion_tokens:
        raise refused(
            f"max_tokens is {limit}: this server generates {settings.max_completion_tokens} at the most.", "max_tokens"
        )
    seed = secrets.randbits(63) if request.seed is None else request.seed
    completions = []
    for number, prompt in enumerate(prompts):
        room = model.context - len(prompt)
        if room < (limit or 1):
            raise _too_long(model, len(prompt), limit or 1, "prompt")
        for choice in range(n):
            completions.append(
                CompletionRequest(
                    prompt=tuple(prompt),
                    rules=replace(rules, seed=(seed + number * n + choice) % 2**63),
                    max_tokens=limit or min(room, settings.max_completion_tokens),
                    stops=request.stops,
                    seconds=settings.request_seconds,
                )
            )
    return completions


def _rules(model: ServedModel, request: Sampling, top_logprobs: int | None) -> TokenRules:
    """The rules of a request; OpenAI lets clients send null for a default."""
    bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
    _checked_ids(model, list(bias), "logit_bias")
    return TokenRules(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_k=request.top_k or 0,
        top_p=1.0 if request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=bias,
        top_logprobs=top_logprobs,
    )


def _constraint(model: ServedModel, request: ChatRequest) -> Constraint | None:
    """The grammar that the reply must follow, if the request asks for one."""
    try:
        if request.must_call:
            functions = [tool.function for tool in request.tools or ()]
            if isinstance(request.tool_choice, NamedTool):
                functions = [f for f in functions if f.name == request.tool_choice.function.name]
            return model.grammars.calls(
                [f.model_dump(exclude_none=True) for f in functions], request.parallel_tool_calls is not False
            )
        if isinstance(request.response_format, JsonObjectFormat):
            return model.grammars.json_schema({"type": "object"})
        if isinstance(request.response_format, JsonSchemaFormat):
            return model.grammars.json_schema(request.response_format.json_schema.schema_)
    except ValueError as error:
        raise refused(str(error), "tools" if request.must_call else "response_format") from None
    return None


def _plain(message: Message) -> dict[str, Any]:
    """A message as the chat template takes it."""
    plain: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _joined(message.content),
    }
    if isinstance(message, AssistantMessage):
        if message.reasoning_content is not None:
            plain["reasoning_content"] = message.reasoning_content
        if message.tool_calls:
            plain["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    if isinstance(message, ToolMessage):
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _joined(content: Text | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


def _refuse_control_tokens(model: ServedModel, messages: Sequence[dict[str, Any]]) -> None:
    """A message must not be able to end its own turn and begin another one, such as the system's."""
    for message in messages:
        texts = [message["content"], message.get("reasoning_content", "")]
        texts += [call["function"]["arguments"] for call in message.get("tool_calls", ())]
        for token in model.codec.control_tokens:
            if any(token in text for text in texts):
                raise refused(f"a message holds the control token {token}: take it out.", "messages")


def _checked_ids(model: ServedModel, ids: Sequence[int], param: str = "prompt") -> list[int]:
    for token in ids:
        if not 0 <= token < model.vocab_size:
            raise refused(f"{token} is no token of this model: its ids go from 0 to {model.vocab_size - 1}.", param)
    return list(ids)


def _too_long(model: ServedModel, prompt: int, limit: int, param: str) -> ApiError:
    return refused(
        f"the context of this model is {model.context} tokens, but {prompt} of the prompt and {limit} to generate "
        "were asked for: shorten one of them.",
        param,
        "context_length_exceeded",
    )
