import pytest

from small_doge.processor.builtin import BUILTIN_SOURCES


@pytest.fixture(scope="session")
def documents():
    """The standard library's documents: a few seconds, once a process."""
    return list(BUILTIN_SOURCES["builtin:python-docs"](packages=False))
