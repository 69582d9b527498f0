import pytest

from small_doge.processor.builtin.text_cleaning import clean_description, clean_docstring, is_english


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("See :class:`~a.b.Cee` and ``x``.", "See `a.b.Cee` and `x`."),
        ("First.\n\n.. versionadded:: 3.2\n   More.\n\nLast.", "First.\n\nLast."),
        ("A `~.path.Path` here.", "A `path.Path` here."),
        (".. note:: Careful.", "Note: Careful."),
        ("Parameters\n----------\nx : int", "Parameters:\nx : int"),
        (":param x: The value.\n:type x: int\n:returns: Twice it.", "x: The value.\nReturns: Twice it."),
        ("Text.\n\n1 2 3\n4 5 6\n7 8 9\n0 1 2\n\nMore.", "Text.\n\nMore."),
        ("Text.\n\n1 2 3\n\nMore.", "Text.\n\n1 2 3\n\nMore."),
        ("Indented::\n\n    code", "Indented:\n\n    code"),
    ],
)
def test_markup_becomes_plain_text(raw, clean):
    assert clean_docstring(raw) == clean


def test_a_readme_loses_badges_html_and_links():
    raw = "# Tool\n\n[![build](https://x/b.svg)](https://x)\n<p class='a'>A [fine](https://x) &amp; small tool.</p>\n"
    assert clean_description(raw) == "# Tool\n\nA fine & small tool."


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("Return the sum of the values in the list.", True),
        ("x1 = 0x3f; y2 = 0x2a; z3 = 0x11; 99 88 77 66 55 44", False),
        ("这是一个中文文档字符串，用于测试。", False),
        ("Gibt die Summe aller Werte zurück, wenn vorhanden.", False),
        ("", False),
    ],
)
def test_only_english_prose_passes(text, english):
    assert is_english(text) is english
