"""Fixtures for the native core; its tests are skipped where it is not built."""

from pathlib import Path

import pytest
from native_reference import random_model
from transformers import DogeForCausalLM

from small_doge.inference import native


@pytest.fixture(autouse=True)
def _needs_native() -> None:
    if not native.is_available():
        pytest.skip(native.reason())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[DogeForCausalLM, Path]:
    """A tiny dense model and its folder."""
    model = random_model()
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    return model, folder
