"""The bodies of answers, as the API's own description gives them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorBody


class Model(BaseModel):
    """A model that the server offers."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "small-doge"


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


class PromptTokens(BaseModel):
    """Where the prompt's tokens came from."""

    cached_tokens: int = 0


class Usage(BaseModel):
    """Tokens of a request; the end token of a completion counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class TopLogprob(BaseModel):
    """A token that was likely, with its natural log-probability before temperature and filters."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of all tokens of the completion, thoughts and calls included."""

    content: list[ChatLogprob]
    refusal: None = None


class CalledFunction(BaseModel):
    """A function's name, and its arguments as JSON text."""

    name: str
    arguments: str


class CalledTool(BaseModel):
    """A call that the model made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Reply(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[CalledTool] | None = None
    refusal: None = None


class ChatChoice(BaseModel):
    """One of the `n` replies."""

    index: int
    message: Reply
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatResponse(BaseModel):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(BaseModel):
    """Log-probabilities in the shape of the older API."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionResponse(BaseModel):
    """Answer of POST /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Embedding(BaseModel):
    """The mean of the last hidden states over an input's tokens; base64 is of little-endian fp32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """Answer of POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Health(BaseModel):
    """Whether the server can answer."""

    status: Literal["ok", "failing", "stopping"]
