"""The OpenAI-compatible HTTP API and the chat page; needs the extra `serve`."""
