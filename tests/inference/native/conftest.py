"""Fixtures for the native core; its tests are skipped where it is not built, which `test_native_build.py` judges."""

from pathlib import Path

import pytest
from native_reference import random_model
from transformers import DogeForCausalLM

from small_doge.inference import native


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A mark, not a fixture: the fixtures of a module would run before it."""
    if native.is_available():
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.path.name != "test_native_build.py":
            item.add_marker(pytest.mark.skip(reason=native.reason()))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[DogeForCausalLM, Path]:
    """A tiny dense model and its folder."""
    model = random_model()
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    return model, folder
