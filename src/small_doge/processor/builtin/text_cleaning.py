"""Turn docstrings, help topics and package descriptions into plain text: no markup, HTML, badges or tables."""

import html
import re

_ROLE = re.compile(r":(?:py:|c:)?[\w+-]+(?::[\w+-]+)?:`~?\.?([^`<]*?)(?:\s*<[^`]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{1,2}")
_DIRECTIVE = re.compile(r"^(\s*)\.\. +(?:\|.*\| )?([\w:-]+?|_\S.*?) ?::?(?: +(.*))?$")
_KEPT_TITLE = {
    "note", "warning", "seealso", "tip", "important", "hint", "caution", "attention", "danger", "error", "impl-detail",
}  # fmt: skip
_UNDERLINE = re.compile(r"^\s*([=\-~^*#\"'+.])\1{2,}\s*$")
_RULE = re.compile(r"^[\s=+|\-_*~:#.]*$")
_FIELD = re.compile(r"^(\s*):(?:param|parameter|arg|keyword|ivar|cvar|var|raises?|except) +([^:\n]+):[ \t]*", re.M)
_RETURNS = re.compile(r"^(\s*):(?:returns?|yields?):[ \t]*", re.M)
_TYPES = re.compile(r"^\s*:(?:type|rtype|vartype|meta|internal|private|nodoc)\b[^\n]*\n?", re.M)
_HTML = re.compile(r"<!--.*?-->|</?[a-zA-Z][^<>\n]{0,300}>", re.S)
_BADGE = re.compile(r"\[?!\[[^\]]*\]\([^)]*\)\]?(?:\([^)]*\)|\[[^\]]*\])?|^\s*\|?\[!\[.*$", re.M)
_MARKDOWN_LINK = re.compile(r"\[([^\[\]\n]+)\](?:\([^()\s]*(?:\s+\"[^\"]*\")?\)|\[[^\]\n]*\])")
_LETTERS = re.compile(r"[A-Za-z]+")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_WORD = re.compile(r"[a-z]+")
_STOP_WORDS = {
    "the", "a", "an", "of", "to", "is", "are", "and", "in", "for", "that", "this", "if", "with", "be", "or",
    "on", "as", "by", "it", "from", "at", "not", "which", "can", "will", "you", "when",
}  # fmt: skip


def clean_docstring(doc: str) -> str:
    """A docstring, dedented already, as plain text: roles and directives resolved, tables gone."""
    text = doc.replace("\r\n", "\n").replace("\f", "")
    text = re.sub(r"\\([*_`|])", r"\1", _TYPES.sub("", text))
    text = re.sub(r"^(\s*:\w+ +)[~!]", r"\1", text, flags=re.M)
    text = _FIELD.sub(r"\1\2: ", text)
    text = _RETURNS.sub(r"\1Returns: ", text)
    lines = _without_directives(text.split("\n"))
    lines = _without_tables(_titles(lines))
    return _tidy(plain_inline("\n".join(lines)))


def clean_description(description: str) -> str:
    """A package's long description (Markdown or reStructuredText) as plain text, badges, HTML and links gone."""
    text = re.sub(r"^\.\. \|.*$|^\s*\|[^|\n]+\|_?\s*$|^\[[^\]\n]+\]: .*$", "", description, flags=re.M)
    text = _HTML.sub("", _BADGE.sub("", _BADGE.sub("", text)))
    text = _MARKDOWN_LINK.sub(r"\1", text)
    text = re.sub(r"^\s*```.*$", "", text, flags=re.M)
    text = re.sub(r"^(#+ .*?)[ \t]*#*$", r"\1", text, flags=re.M)
    text = re.sub(r"^[ \t]*(?:[\[\]()<>|]|https?://\S+[)\]]?)+[ \t]*$", "", text, flags=re.M)  # what is left of badges
    return clean_docstring(html.unescape(text))


def plain_inline(text: str) -> str:
    """Inline markup to plain text: roles and double backquotes become `x`, named links their name."""
    text = _LINK.sub(r"\1", _ROLE.sub(r"`\1`", text))
    text = re.sub(r"`[~!]\.?([\w.]+)`", r"`\1`", text)
    text = re.sub(r"> \[!(?:TIP|NOTE|WARNING|IMPORTANT|CAUTION)\]\s*(?:> )?", "", text)
    text = re.sub(r"\[`~?([^`\]]+)`\](?:\([^)\s]*\))?", r"`\1`", text)  # transformers' cross references
    text = re.sub(r"``([^`\n]+?)``", r"`\1`", text)
    text = re.sub(r"``([^`'\n]+?)''", r'"\1"', text)  # quotation marks as TeX writes them
    text = re.sub(r"(?<![\w`])`([^`\n]+)`__?(?![\w`])", r"\1", text)
    text = re.sub(r"\[\d+\]_|\|([A-Z]\w+)\|", r"\1", text)
    text = re.sub(r"</?(?:Tip|Added|ExampleCodeBlock|Youtube)\b[^<>\n]*>", "", text)
    return re.sub(r"(?m)(?<=\w)::$", ":", text)


def _without_directives(lines: list[str]) -> list[str]:
    kept: list[str] = []
    dropping = -1  # indentation of the directive whose block is being left out
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if dropping >= 0:
            if not line.strip() or indent > dropping:
                continue
            dropping = -1
        if line.lstrip().startswith(".. "):
            match = _DIRECTIVE.match(line)
            if not match:
                dropping = indent  # a comment or a hyperlink target
                continue
            name, rest = match.group(2).lower(), match.group(3) or ""
            if name in _KEPT_TITLE:
                title = {"seealso": "See also", "impl-detail": "Implementation detail"}.get(name, name.capitalize())
                kept.append(f"{match.group(1)}{title}: {rest}".rstrip())
            elif name in ("code-block", "code", "sourcecode", "parsed-literal", "doctest", "testcode", "ipython"):
                continue
            else:
                dropping = indent
        elif line.strip() not in ("..", "::"):
            kept.append(line)
    return kept


def _titles(lines: list[str]) -> list[str]:
    """Underlined section titles become `Title:`; the lines above and below them go."""
    kept: list[str] = []
    for line in lines:
        if _UNDERLINE.match(line):
            above = kept[-1].strip() if kept else ""
            is_title = 0 < len(above) < 70 and "  " not in above and re.search(r"\w", above)
            if is_title and above[-1] not in ":.!?":
                kept[-1] = kept[-1].rstrip() + ":"
            continue
        kept.append(line)
    return kept


def _without_tables(lines: list[str]) -> list[str]:
    """Leave out rules, rows of grid tables, and runs of four or more lines that are mostly figures and signs."""
    kept: list[str] = []
    run: list[str] = []
    for line in [*lines, "end of the text"]:
        bare = line.strip()
        if len(bare) >= 3 and (_RULE.match(bare) or (bare[0] in "|+" and bare[-1] in "|+")):
            continue
        if bare and _letters(bare) < 0.4 * len(bare.replace(" ", "")):
            run.append(line)
            continue
        if len(run) < 4:
            kept.extend(run)
        run = []
        kept.append(line)
    return kept[:-1]


def _tidy(text: str) -> str:
    text = re.sub(r"[ \t]+$", "", text.expandtabs(4), flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def is_english(text: str) -> bool:
    """Whether a text reads as English prose, perhaps with code in it: letters, ASCII, common words."""
    visible = len("".join(text.split()))
    if not visible or _letters(text) < 0.55 * visible:
        return False
    if not text.isascii() and len(_NOT_ASCII.sub("", text)) < len(text) - 0.02 * visible:
        return False
    words = _WORD.findall(text.lower())
    return sum(map(_STOP_WORDS.__contains__, words)) >= max(1, 0.08 * len(words))


def _letters(text: str) -> int:
    return len("".join(_LETTERS.findall(text)))
