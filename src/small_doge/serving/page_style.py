"""How the chat page looks. Fonts are the reader's own, so that nothing is fetched from elsewhere."""

from __future__ import annotations

import gradio as gr

THEME = gr.themes.Default(
    primary_hue="amber",
    secondary_hue="amber",
    neutral_hue="stone",
    radius_size="lg",
    font=("ui-sans-serif", "system-ui", "sans-serif"),
    font_mono=("ui-monospace", "Consolas", "monospace"),
)
TOGGLE_DARK = "() => { document.body.classList.toggle('dark'); }"
CSS = """
.gradio-container { max-width: 100% !important; }
/* The question stays in view however long the chat; dvh follows the bars of a phone's browser. */
#chatbot { border: none !important; background: transparent; }
#chatbot { height: calc(100dvh - 10.5rem) !important; min-height: 12rem; }
#chatbot .bubble-wrap { background: transparent; }
#chatbot, #question, #status { max-width: 56rem; width: 100%; margin-inline: auto; }
#question { min-height: fit-content; }
#status { min-height: 1.4em; font-size: 0.85em; opacity: 0.75; }
#chats .wrap { flex-direction: column; flex-wrap: nowrap; max-height: 40vh; overflow-y: auto; }
#chats label { width: 100%; }
#chats label span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
footer { display: none !important; }
@media (max-width: 640px) { #chatbot { padding: 0; } .gradio-container main { padding: 0.5rem !important; } }
"""
