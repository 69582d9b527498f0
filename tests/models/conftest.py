"""The small models as fixtures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_models import randomize, small_config, small_model

from small_doge import DogeConfig, DogeForCausalLM


@pytest.fixture(scope="session")
def make_config() -> Callable[..., DogeConfig]:
    return small_config


@pytest.fixture(scope="session")
def make_model() -> Callable[..., DogeForCausalLM]:
    """make_model(kind, seed=, dtype=, attn=, **config fields): `small_model`."""
    return small_model


@pytest.fixture(scope="session")
def randomized() -> Callable[..., torch.nn.Module]:
    return randomize
