from __future__ import annotations

import re

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.models.doge.conversion import upcycle
from small_doge.trainer.unfreezing import STAGES, StagedUnfreezing

STEPS = 8


def grown(moe=True):
    torch.manual_seed(0)
    config = DogeConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        keep_window_size=8,
        tie_word_embeddings=True,
    )
    dense = DogeForCausalLM(config)
    return upcycle(dense, 16, 2) if moe else dense


class Watch(TrainerCallback):
    """Which parameters each step moved."""

    def __init__(self):
        self.moved, self.before = {}, {}

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, self.before[name])}
        self.moved[state.global_step - 1] = changed


def train(folder, model, callback, stop_at=None, resume=None):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == stop_at:
                control.should_training_stop = True

    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        lr_scheduler_type="constant",
        save_steps=3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    rows = torch.randint(32, (64, 16), generator=torch.Generator().manual_seed(0))
    watch = Watch()
    data = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(model=model, args=args, train_dataset=data, callbacks=[callback, watch, Stop()]).train(
        resume_from_checkpoint=resume
    )
    return watch.moved


def stage_of(name):
    return next(i for i, pattern in enumerate(STAGES.values()) if re.search(pattern, "." + name))


def test_each_stage_trains_what_it_names_and_nothing_later(tmp_path):
    model = grown()
    moved = train(tmp_path, model, StagedUnfreezing((0.0, 0.25, 0.5, 0.75)))
    for step, names in moved.items():
        stage = step // 2
        assert names, step
        assert {stage_of(name) for name in names} == set(range(stage + 1)), step
    everything = {name for name, _ in model.named_parameters()}
    assert moved[STEPS - 1] == everything
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    whole, cut = grown(), grown()
    starts = (0.0, 0.25, 0.5, 0.75)
    train(tmp_path / "whole", whole, StagedUnfreezing(starts))
    train(tmp_path / "cut", cut, StagedUnfreezing(starts), stop_at=3)
    resumed = grown()
    moved = train(tmp_path / "cut", resumed, StagedUnfreezing(starts), resume=str(tmp_path / "cut" / "checkpoint-3"))
    assert {stage_of(name) for name in moved[3]} == {0, 1}
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_dense_model_goes_through_the_stages_that_it_has(tmp_path):
    moved = train(tmp_path, grown(moe=False), StagedUnfreezing((0.0, 0.25, 0.5, 0.75)))
    assert [sorted({stage_of(name) for name in moved[step]}) for step in (1, 3, 5, 7)] == [[0], [0], [0, 2], [0, 2, 3]]


def test_what_the_caller_froze_stays_frozen(tmp_path):
    model = grown()
    model.model.embed_tokens.weight.requires_grad_(False)
    moved = train(tmp_path, model, StagedUnfreezing((0.0, 0.0, 0.0, 0.0)))
    assert not any("embed_tokens" in name for names in moved.values() for name in names)
    assert not model.model.embed_tokens.weight.requires_grad


@pytest.mark.parametrize("starts", [(0.0, 0.1, 0.2), (0.1, 0.2, 0.3, 0.4), (0.0, 0.3, 0.2, 0.4), (0.0, 0.1, 0.2, 1.5)])
def test_stages_that_are_not_rising_shares_are_refused(starts):
    with pytest.raises(ValueError, match="rising from 0 to at most 1"):
        StagedUnfreezing(starts)


def test_a_model_without_scores_is_refused(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(ValueError, match="staged unfreezing is for a Doge"):
        train(tmp_path, LlamaForCausalLM(config), StagedUnfreezing())
