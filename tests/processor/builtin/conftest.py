import pytest

from small_doge.processor.builtin import iter_documents


@pytest.fixture(scope="session")
def documents():
    """The standard library's documents: a few seconds, once."""
    return list(iter_documents(packages=False))
