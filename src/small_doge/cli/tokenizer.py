"""`small-doge tokenizer`: train one, or look at one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from small_doge.cli.console import console

app = typer.Typer(help="Train a tokenizer, or look at one.", no_args_is_help=True)


@app.command("train")
def tokenizer_train(
    sources: Annotated[list[str], typer.Argument(help="Text: files, folders or built-in sources.")],
    out: Annotated[Path, typer.Option(help="Folder to save it to.")] = Path("tokenizer"),
    vocab_size: Annotated[int, typer.Option(help="Number of tokens.")] = 32768,
) -> None:
    """Train a byte-level BPE tokenizer with the family's special tokens and chat template."""
    from small_doge.processor.documents import iter_documents
    from small_doge.processor.tokenizer import train_tokenizer

    texts = (document.text for source in sources for document in iter_documents(source))
    tokenizer = train_tokenizer(texts, vocab_size, show_progress=console.is_terminal)
    tokenizer.save_pretrained(str(out))
    console.print(f"{len(tokenizer):,} tokens saved to {out}", highlight=False)


@app.command("inspect")
def tokenizer_inspect(
    tokenizer: Annotated[str, typer.Argument(help="Tokenizer folder or hub id.")],
    text: Annotated[str, typer.Option(help="Text to encode.")] = "The quick brown fox jumps over 13 lazy dogs.",
) -> None:
    """Show a tokenizer's size and special tokens, and how it cuts a text."""
    from small_doge.processor.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    ids = loaded(text, add_special_tokens=False)["input_ids"]
    console.print(f"{len(loaded):,} tokens; {len(ids)} for {len(text.encode())} bytes", highlight=False)
    special = {"bos": loaded.bos_token, "eos": loaded.eos_token, "pad": loaded.pad_token}
    console.print(" ".join(f"{name}={token}" for name, token in special.items()), markup=False, highlight=False)
    console.print(" | ".join(str(loaded.decode([i])) for i in ids), markup=False, highlight=False)
