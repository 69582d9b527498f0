"""Scores from shared rows are those of one plain forward a continuation."""

import pytest
import torch

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.evaluation.prefix_rows import NEVER, batch_rows, build_rows
from small_doge.evaluation.scoring import Continuation, score_continuations


def tiny(keep_window: int = 256, **options) -> DogeForCausalLM:
    torch.manual_seed(0)
    config = DogeConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        keep_window_size=keep_window,
        tie_word_embeddings=True,
        **options,
    )
    model = DogeForCausalLM(config).eval()
    for layer in model.model.layers:
        # At zero every score is equal, and the mask would be a sliding window.
        torch.nn.init.normal_(layer.self_attn.A)
    return model


def questions(count: int = 6, prefix: int = 40, seed: int = 1) -> list[Continuation]:
    """Four answers of different lengths to each question, after one long common beginning."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n):
        return torch.randint(97, (n,), generator=generator).tolist()

    shots = draw(prefix)
    return [
        Continuation([*shots, *question], draw(1 + answer))
        for question in (draw(5 + i) for i in range(count))
        for answer in range(4)
    ]


@torch.no_grad()
def plainly(model, continuation, max_length=256):
    ids = [*continuation.context, *continuation.tokens][-(max_length + 1) :]
    log_probs = model(torch.tensor([ids[:-1]]), use_cache=False).logits[0].double().log_softmax(-1)
    asked, targets = log_probs[-len(continuation.tokens) :], torch.tensor(continuation.tokens)
    return asked.gather(1, targets[:, None]).sum().item(), bool((asked.argmax(-1) == targets).all())


@pytest.mark.parametrize("batch_tokens", [64, 100_000], ids=["one row a batch", "all in one batch"])
@pytest.mark.parametrize(
    ("model", "continuations"),
    [
        (tiny(), questions()),
        (tiny(), questions(prefix=0)),
        (tiny(), [*questions(), *questions()[:5], Continuation([3], [4])]),
        (tiny(keep_window=24), questions(prefix=12)),
        (tiny(is_moe=True, num_experts=16, num_experts_per_tok=4), questions()),
        (tiny(score_per_query_head=True), questions()),
    ],
    ids=["few-shot", "zero-shot", "repeated and short", "longer than the window", "mixture", "score a query head"],
)
def test_scores_are_those_of_a_forward_each(model, continuations, batch_tokens):
    scores = score_continuations(model, continuations, 256, batch_tokens)
    for score, continuation in zip(scores, continuations, strict=True):
        expected, greedy = plainly(model, continuation)
        assert score.log_probability == pytest.approx(expected, abs=2e-4)
        assert score.greedy == greedy


def test_the_likeliest_continuation_is_called_greedy():
    model = tiny()
    context = questions()[0].context
    best = model.generate(torch.tensor([context]), max_new_tokens=3, do_sample=False)[0, len(context) :].tolist()
    other = [best[0], (best[1] + 1) % 97]
    scores = score_continuations(model, [Continuation(context, best), Continuation(context, other)], 256)
    assert [score.greedy for score in scores] == [True, False]


def test_a_context_too_long_loses_its_beginning():
    model, continuation = tiny(), questions()[7]
    (score,) = score_continuations(model, [continuation], max_length=20)
    assert score.log_probability == pytest.approx(plainly(model, continuation, 20)[0], abs=2e-4)


def test_a_shared_prefix_is_laid_out_once():
    shots = list(range(1, 41))
    sequences = [[*shots, 50, 51], [*shots, 50, 52, 53], [*shots, 60], [*shots, 60]]
    (row,) = build_rows(sequences, [1, 2, 1, 1], longest=256, token_cost=100)
    assert row.ids == [*shots, 50, 51, 52, 53, 60]
    assert row.depth == [*range(40), 40, 41, 41, 42, 40]
    assert row.limit == [*[NEVER] * 40, 44, 42, 44, 44, NEVER]
    assert row.asked == {0: [41], 1: [42, 43], 2: [44], 3: [44]}


def test_no_row_branches_where_none_may():
    rows = build_rows([[1, 2, 3], [1, 2, 4], [1, 2, 4]], [1, 1, 1], longest=0, token_cost=100)
    assert [row.ids for row in rows] == [[1, 2, 3], [1, 2, 4]]


def test_batches_keep_to_their_tokens_and_rows_beyond_the_window_stay_apart():
    rows = build_rows([[i] * n for i, n in enumerate((30, 30, 20, 8, 8, 8))], [1] * 6, longest=0, token_cost=0)
    batches = [[len(row) for row in batch] for batch in batch_rows(rows, batch_tokens=64, keep_window=24)]
    assert batches == [[30, 30], [20, 8, 8], [8]]


@pytest.mark.parametrize(
    "wrong",
    [Continuation([], [1]), Continuation([1], []), Continuation([1], [1] * 300)],
    ids=["no context", "nothing to score", "longer than the model sees"],
)
def test_what_cannot_be_scored_is_refused_with_the_mend(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        score_continuations(tiny(), [wrong], 256)


@pytest.mark.gpu
@pytest.mark.parametrize("keep_window", [256, 24], ids=["rows that branch", "longer than the window"])
def test_scores_on_a_gpu_are_those_of_the_cpu(keep_window):
    model, continuations = tiny(keep_window), questions()
    expected = score_continuations(model, continuations, 256)
    found = score_continuations(model.to("cuda"), continuations, 256)
    for score, reference in zip(found, expected, strict=True):
        assert score.log_probability == pytest.approx(reference.log_probability, abs=2e-3)
