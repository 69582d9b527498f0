from small_doge.processor.builtin import BUILTIN_SOURCES
from small_doge.processor.builtin.splitting import position
from small_doge.processor.documents import key_is_test


def test_the_registry_names_four_sources_with_a_line_each():
    assert sorted(BUILTIN_SOURCES) == [
        "builtin:arithmetic", "builtin:python-docs", "builtin:python-preferences", "builtin:python-qa",
    ]  # fmt: skip
    assert all(s.description and "\n" not in s.description for s in BUILTIN_SOURCES.values())


def test_options_reach_the_generator(documents):
    assert len(list(BUILTIN_SOURCES["builtin:arithmetic"](n=7, split="test"))) == 7
    assert list(BUILTIN_SOURCES["builtin:python-docs"](packages=False)) == documents
    assert sum(1 for _ in BUILTIN_SOURCES["builtin:python-qa"](documents=documents[:200])) > 50


def test_the_split_is_the_document_readers_own(documents):
    groups = {d["group"] for d in documents}
    assert [position(g) < 0.05 for g in groups] == [key_is_test(g, 0.05) for g in groups]
