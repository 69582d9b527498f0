"""The chat page: gradio before the same batcher as the API. The server keeps nothing; each browser has its chats."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import gradio as gr
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.responses import RedirectResponse

from small_doge.serving.chat_run import ChatRun, start_chat
from small_doge.serving.conversations import (
    Bubble,
    add_reply,
    after_edit,
    choices,
    delete_current,
    messages_of,
    new_conversation,
    open_conversation,
    save,
    up_to_question,
)
from small_doge.serving.errors import ApiError
from small_doge.serving.page_style import CSS, THEME, TOGGLE_DARK
from small_doge.serving.schemas import ChatRequest
from small_doge.serving.security import admits
from small_doge.serving.service import Service

PATH = "/chat"
# The browser draws Markdown anew with each update, so there is no use in more of them.
UPDATE_SECONDS = 0.05
THINKING = {"model decides": None, "on": True, "off": False}
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
    {"left": "$", "right": "$", "display": False},
]


def mount_page(app: FastAPI, service: Service) -> None:
    """Put the page at /chat, and lead / there."""

    @app.get("/", include_in_schema=False)
    async def to_the_page() -> RedirectResponse:
        return RedirectResponse(f"{PATH}/")

    hashes = service.settings.api_key_hashes
    gr.mount_gradio_app(
        app,
        build_page(service),
        PATH,
        auth=(lambda user, key: admits(hashes, key)) if hashes else None,
        auth_message="Any name, and an API key of this server as the password." if hashes else None,
        footer_links=[],
        max_file_size=1,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=THEME,
        css=CSS,
    )


def build_page(service: Service) -> gr.Blocks:
    """The page's components, and what they do."""
    names = [model.name for model in service.models]
    with gr.Blocks(title="SmallDoge", analytics_enabled=False, fill_width=True) as page:
        # The secret only keeps the browser's own copy from being read at a glance; it must outlive the server.
        store = gr.BrowserState(new_conversation(None), storage_key="small-doge-chats", secret="small-doge")
        with gr.Sidebar(width=300, open=False, elem_id="sidebar") as sidebar:
            new = gr.Button("New chat", variant="primary", elem_id="new-chat")
            chats = gr.Radio([], label="Chats", elem_id="chats")
            delete = gr.Button("Delete this chat", size="sm", elem_id="delete-chat")
            with gr.Accordion("Settings", open=False, elem_id="settings"):
                model = gr.Dropdown(names, value=names[0], label="Model", interactive=len(names) > 1)
                system = gr.Textbox("", label="System message", lines=2, placeholder="None")
                thinking = gr.Radio(list(THINKING), value="model decides", label="Thinking")
                temperature = gr.Slider(0, 2, 0.8, step=0.05, label="Temperature (0: the most likely token)")
                top_p = gr.Slider(0.05, 1, 0.95, step=0.05, label="Top-p")
                limit = service.settings.max_completion_tokens
                tokens = gr.Slider(1, limit, min(512, limit), step=1, label="Longest answer, in tokens")
            dark = gr.Button("Light or dark", size="sm", elem_id="dark")
        chatbot = gr.Chatbot(
            elem_id="chatbot",
            show_label=False,
            height=None,
            latex_delimiters=LATEX,
            editable="user",
            feedback_options=None,
            buttons=["copy", "copy_all"],
            allow_tags=False,
            layout="bubble",
            placeholder="### Ask something\nYour chats stay in this browser.",
        )
        status = gr.Markdown("", elem_id="status")
        question = gr.Textbox(
            placeholder="Ask something (Shift+Enter for a new line)",
            show_label=False,
            lines=1,
            max_lines=8,
            autofocus=True,
            submit_btn="Send",
            stop_btn=False,
            elem_id="question",
        )

        options = [model, system, thinking, temperature, top_p, tokens]
        everything = [chatbot, store, chats]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        answer = partial(_answer, service)

        asked = question.submit(_ask, [question, chatbot], [question, chatbot], **quiet)
        answered = [asked.success(answer, [chatbot, *options], [chatbot, status], **quiet)]
        retried = chatbot.retry(_retry, chatbot, [question, chatbot], **quiet)
        answered.append(retried.success(answer, [chatbot, *options], [chatbot, status], **quiet))
        edited = chatbot.edit(_edit, chatbot, [question, chatbot], **quiet)
        answered.append(edited.success(answer, [chatbot, *options], [chatbot, status], **quiet))
        for event in answered:
            # This runs after an answer that was cancelled too, and keeps what came of it.
            event.then(_done, [chatbot, store], [question, *everything], **quiet)
        question.stop(None, cancels=answered, api_visibility="private")
        chatbot.clear(_done, [chatbot, store], [question, *everything], **quiet)
        begun = new.click(_new, [chatbot, store], [*everything, status], cancels=answered, **quiet)
        switched = chats.input(_switch, [chatbot, store, chats], [*everything, status], cancels=answered, **quiet)
        deleted = delete.click(_delete, store, [*everything, status], cancels=answered, **quiet)
        for event in (begun, switched, deleted):
            event.then(_idle, None, question, **quiet)
        dark.click(None, js=TOGGLE_DARK, api_visibility="private")
        page.load(_shown, store, everything, **quiet)
        # On a phone the sidebar would cover the chat.
        wide = gr.Checkbox(visible=False)
        page.load(_sidebar, wide, sidebar, js="() => window.innerWidth > 768", **quiet)
    return page


async def _answer(
    service: Service,
    bubbles: list[Bubble],
    model: str,
    system: str,
    thinking: str,
    temperature: float,
    top_p: float,
    tokens: float,
) -> AsyncIterator[tuple[list[Bubble], str]]:
    """Stream the reply to the last question, and the speed."""
    try:
        request = ChatRequest.model_validate(
            {
                "model": model,
                "messages": messages_of(bubbles, system),
                "temperature": temperature,
                "top_p": top_p,
                "max_tokens": int(tokens),
                "chat_template_kwargs": {"enable_thinking": THINKING[thinking]},
            }
        )
        run = await start_chat(service.models[model], request, service.settings)
    except ValidationError as error:
        raise gr.Error(error.errors()[0]["msg"], print_exception=False) from None
    except ApiError as error:
        raise gr.Error(error.message, print_exception=False) from None
    service.log_text("messages", str(messages_of(bubbles, system)))
    reply: list[Bubble] = []
    start = shown = time.monotonic()
    try:
        async for update in run.updates():
            add_reply(reply, update.parts)
            now = time.monotonic()
            if now - shown > UPDATE_SECONDS:
                shown = now
                yield bubbles + reply, _speed(run, now - start)
    except ApiError as error:
        raise gr.Error(error.message, print_exception=False) from None
    finally:
        run.cancel()
    for bubble in reply:
        if bubble["metadata"]:
            bubble["metadata"]["status"] = "done"
    service.log_text("reply", str(reply))
    yield bubbles + reply, _speed(run, time.monotonic() - start)


def _speed(run: ChatRun, seconds: float) -> str:
    count = sum(run.counts.completions.values())
    return f"{count} tokens, {count / max(seconds, 1e-6):,.0f} tokens/s"


def _sidebar(wide: bool) -> Any:
    return gr.update(open=wide)


def _busy(**more: Any) -> Any:
    return gr.update(submit_btn=False, stop_btn="Stop", **more)


def _idle() -> Any:
    return gr.update(submit_btn="Send", stop_btn=False)


def _ask(question: str, bubbles: list[Bubble]) -> tuple[Any, list[Bubble]]:
    if not question.strip():
        raise gr.Error("Write a question first.", print_exception=False, duration=2)
    return _busy(value=""), [*bubbles, {"role": "user", "content": question, "metadata": {}}]


def _retry(bubbles: list[Bubble], at: gr.RetryData) -> tuple[Any, list[Bubble]]:
    return _busy(), up_to_question(bubbles, _number(at.index))


def _edit(bubbles: list[Bubble], edit: gr.EditData) -> tuple[Any, list[Bubble]]:
    return _busy(), after_edit(bubbles, _number(edit.index), str(edit.value))


def _number(index: int | tuple[int, int]) -> int:
    return index if isinstance(index, int) else index[0]


def _done(bubbles: list[Bubble], store: dict[str, Any]) -> tuple[Any, list[Bubble], dict[str, Any], Any]:
    return _idle(), *_shown(save(store, bubbles))


def _shown(store: dict[str, Any]) -> tuple[list[Bubble], dict[str, Any], Any]:
    radio = gr.update(choices=choices(store), value=store["current"])
    return open_conversation(store, store["current"]), store, radio


def _new(bubbles: list[Bubble], store: dict[str, Any]) -> tuple[list[Bubble], dict[str, Any], Any, str]:
    return *_shown(new_conversation(save(store, bubbles))), ""


def _switch(bubbles: list[Bubble], store: dict[str, Any], to: str) -> tuple[list[Bubble], dict[str, Any], Any, str]:
    return *_shown({**save(store, bubbles), "current": to}), ""


def _delete(store: dict[str, Any]) -> tuple[list[Bubble], dict[str, Any], Any, str]:
    return *_shown(delete_current(store)), ""
