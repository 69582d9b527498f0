"""`small-doge scaling`: batch, learning rate and time for a size and a token budget."""

from __future__ import annotations

from typing import Annotated

import typer

from small_doge.cli.console import console, plain_table


def scaling(
    size: Annotated[str, typer.Argument(help="20M, 60M, 160M or 320M.")],
    tokens: Annotated[
        str | None, typer.Option(help="Token budget, as 70M or 4B; the released run's if left out.")
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=1, help="Your measured training rate, to turn the budget into hours.")
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Tokens in a row.")] = 2048,
) -> None:
    """Print learning rate and batch by published laws and by this project's recipes, and the hours on this GPU."""
    from small_doge.models.doge.accounting_doge import count_parameters, training_flops_per_token
    from small_doge.models.doge.configuration_doge import DogeConfig
    from small_doge.trainer.budget import token_count
    from small_doge.utils.hardware import default_device, device_name, peak_flops
    from small_doge.utils.scaling_laws import chinchilla_loss, chinchilla_tokens, plan, released_run, step_law

    size = size.removeprefix("Doge-")
    released = released_run(size)
    config = DogeConfig.from_size(size)
    budget = token_count(tokens) if tokens is not None else float(released.tokens)
    adamw, muon = (plan(size, budget, optimizer, length) for optimizer in ("adamw", "muon"))
    count = count_parameters(config)
    rate, batch = step_law(count.total - count.embedding, budget)

    table = plain_table("what", "peak learning rate", "tokens a step", "steps", "source")
    steps = f"{adamw.steps:,}"
    rows = f"{adamw.rows * length:,} ({adamw.rows} rows)"
    table.add_row("this project, AdamW", f"{adamw.learning_rate:.1e}", rows, steps, "released run and short track")
    both = f"{muon.muon_learning_rate:.1e} matrices, {muon.learning_rate:.1e} rest"
    table.add_row("this project, Muon", both, rows, steps, "short track, 20M only")
    table.add_row("Step Law, AdamW", f"{rate:.1e}", f"{batch:,.0f}", f"{budget / batch:,.0f}", "arXiv 2503.04715")
    table.add_row("Chinchilla", "states none", "states none", "", "arXiv 2203.15556")
    console.print(table)

    optimal = chinchilla_tokens(count.total)
    flops = training_flops_per_token(config, length) * budget
    device = default_device()
    name = device_name(device)
    peak = peak_flops(name) if device.type == "cuda" else None
    floor = f"{flops / peak / 3600:.2f} at its bf16 peak, which no run reaches" if peak else "n/a at its bf16 peak"
    hours = (
        f"{budget / tokens_per_second / 3600:.2f} at the rate given"
        if tokens_per_second
        else ("n/a without --tokens-per-second")
    )
    lines = [
        f"Doge-{size}: {count.total:,} parameters, {count.total - count.embedding:,} without embeddings; "
        f"{budget / 1e9:.3g} B tokens, {budget / count.total:,.0f} a parameter",
        f"Chinchilla: compute-optimal at {optimal / 1e9:.3g} B tokens (20 a parameter); its fit foretells "
        f"{chinchilla_loss(count.total, budget):.2f} nats a token on its own data and tokenizer",
        f"Training: {flops:.3g} FLOPs; hours on {name}: {hours}, {floor}",
    ]
    for line in lines:
        console.print(line, highlight=False)
