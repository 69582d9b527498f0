"""`small-doge tokenizer`: train one, measure it beside others, or look at one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from small_doge.cli.console import console, plain_table

app = typer.Typer(help="Train a tokenizer, measure it beside others, or look at one.", no_args_is_help=True)

LARGEST_EVALUATION_BYTES = 2_000_000


@app.command("train")
def tokenizer_train(
    sources: Annotated[list[str], typer.Argument(help="Text: files, folders, patterns or names; NAME=RATIO to mix.")],
    out: Annotated[Path, typer.Option(help="Folder to save it to.")] = Path("tokenizer"),
    vocab_size: Annotated[int, typer.Option(help="Number of tokens.")] = 32768,
    old: Annotated[
        str | None, typer.Option("--from", help="Cut text as this byte-level tokenizer does: folder, file or hub id.")
    ] = None,
    chinese: Annotated[str | None, typer.Option(help="A source of Chinese text, for a bilingual tokenizer.")] = None,
    chinese_share: Annotated[float, typer.Option(help="Its share of the bytes.")] = 0.3,
    megabytes: Annotated[
        float | None, typer.Option(min=0.001, help="Text to learn from; default all the ratios allow.")
    ] = None,
    test_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the documents not learnt from; 0 for none.")
    ] = 0.01,
) -> None:
    """Train a byte-level BPE tokenizer with the family's special tokens and chat template.

    Then print bytes a token on the documents of each source that were held out.
    """
    from small_doge.processor.tokenizer_tools import evaluate_tokenizers, train_tokenizer_on

    ratios = _ratios(sources)
    if chinese is not None:
        if not 0 < chinese_share < 1:
            raise ValueError(f"--chinese-share is {chinese_share}: give a share between 0 and 1.")
        others = sum(ratios.values())
        ratios = {name: ratio / others * (1 - chinese_share) for name, ratio in ratios.items()}
        ratios[chinese] = chinese_share
    tokenizer = train_tokenizer_on(
        [{name: ratio} for name, ratio in ratios.items()],
        vocab_size,
        total_bytes=None if megabytes is None else int(megabytes * 1e6),
        from_tokenizer=old,
        test_share=test_share,
        show_progress=console.is_terminal,
    )
    tokenizer.save_pretrained(str(out))
    console.print(f"{len(tokenizer):,} tokens saved to {out}", highlight=False)
    if test_share:
        rows = []
        for source in ratios:
            try:
                rows += evaluate_tokenizers({out.name: tokenizer}, {Path(source).name: source}, test_share=test_share)
            except ValueError as error:
                console.print(str(error), markup=False, highlight=False)
        if rows:
            _print_rates(rows)


@app.command("eval")
def tokenizer_eval(
    tokenizers: Annotated[list[str], typer.Argument(help="Folders, tokenizer.json files or hub ids, side by side.")],
    on: Annotated[list[str] | None, typer.Option(help="A domain of text, as NAME=SOURCE; repeat for more.")] = None,
    test_share: Annotated[
        float | None,
        typer.Option(min=0.001, max=0.9, help="Read only the documents that this share holds out; default all."),
    ] = None,
    megabytes: Annotated[
        float, typer.Option(min=0.001, help="Most text to read of a domain.")
    ] = LARGEST_EVALUATION_BYTES / 1e6,
) -> None:
    """Print bytes a token of tokenizers by domain: more is better."""
    from small_doge.processor.tokenizer_tools import evaluate_tokenizers

    domains = {}
    for item in on or ["python-docs=builtin:python-docs"]:
        name, equals, source = item.partition("=")
        if not equals:
            raise ValueError(f"--on {item} has no name: write --on NAME=SOURCE.")
        domains[name] = source
    _print_rates(
        evaluate_tokenizers(
            {_short(name): name for name in tokenizers},
            domains,
            test_share=test_share,
            max_bytes=int(megabytes * 1e6),
        )
    )


@app.command("inspect")
def tokenizer_inspect(
    tokenizer: Annotated[str, typer.Argument(help="Tokenizer folder, tokenizer.json file or hub id.")],
    text: Annotated[list[str] | None, typer.Option(help="Text to cut; repeat for more.")] = None,
) -> None:
    """Show a tokenizer's size, special tokens and template, and how it cuts some texts."""
    from small_doge.processor.tokenizer_tools import SAMPLES, inspect_tokenizer

    shown = inspect_tokenizer(tokenizer, text or SAMPLES)
    lines = [f"{shown['vocab_size']:,} tokens, {len(shown['added_tokens'])} of them special"]
    lines += [f"{name}: {item['token']} (id {item['id']})" for name, item in shown["special_tokens"].items()]
    lines.append(f"adds BOS to plain text: {_yes(shown['adds_bos_to_text'])}")
    lines.append(f"chat template: {_yes(shown['chat_template'])}, marks answers: {_yes(shown['assistant_mask'])}")
    lines.append(f"encodes by {shown['encoder']}")
    for cut in shown["texts"]:
        size = len(cut["text"].encode())
        lines.append(f"{len(cut['tokens'])} for {size} bytes, exact {_yes(cut['exact'])}: {' | '.join(cut['tokens'])}")
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _ratios(sources: Sequence[str]) -> dict[str, float]:
    """Sources with their ratios: `data/en=0.7`, or 1 where none is given."""
    ratios: dict[str, float] = {}
    for item in sources:
        name, _, ratio = item.rpartition("=")
        try:
            ratios[name or item] = float(ratio) if name else 1.0
        except ValueError:
            ratios[item] = 1.0
    return ratios


def _short(name: str) -> str:
    """A tokenizer's name for a table's column."""
    path = Path(name)
    return path.stem if path.suffix == ".json" else path.name


def _print_rates(rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(row["tokenizer"] for row in rows))
    table = plain_table("bytes a token on", "documents", "bytes", *names)
    for domain in dict.fromkeys(row["domain"] for row in rows):
        found = {row["tokenizer"]: row for row in rows if row["domain"] == domain}
        first = next(iter(found.values()))
        rates = [f"{found[name]['bytes_per_token']:.3f}" for name in names]
        table.add_row(domain, f"{first['documents']:,}", f"{first['bytes']:,}", *rates)
    console.print(table)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
