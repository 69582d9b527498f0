"""Source `builtin:python-qa`: short questions about Python's own documentation, answered by its first sentences."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from .python_docs import cached_documents
from .text_cleaning import is_english, plain_inline

SOURCE = "builtin:python-qa"
SHORTEST_ANSWER, LONGEST_ANSWER = 20, 300  # characters
LONGEST_NAME = 60
MOST_PARAMETERS = 6

_WHAT = {
    "function": ("What does `{}` do?", "Explain `{}` briefly.", "What is `{}` for?", "Describe the function `{}`."),
    "method": ("What does `{}` do?", "Explain `{}` briefly.", "What is `{}` for?", "Describe the method `{}`."),
    "class": ("What is `{}`?", "Explain the class `{}` briefly.", "What is the class `{}` for?", "Describe `{}`."),
    "entry": (
        "What does `{}` do?",
        "Explain `{}` briefly.",
        "What is `{}` for?",
    ),  # of an index: a function or a method
    "module": (
        "What is the module `{}` for?",
        "Explain the module `{}` briefly.",
        "What does the module `{}` provide?",
    ),
}
_PARAMETERS = ("What are the parameters of `{}`?", "Which parameters does `{}` take?", "What do I pass to `{}`?")
_MODULE = ("Which module is `{}` in?", "Where do I find `{}`?", "From which module do I import `{}`?")

_WHO = (
    "Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Are you a human?",
    "Who made you?", "Who trained you?", "What model are you?", "Introduce yourself.", "What is Doge?",
    "Are you an AI?", "Hello, who am I talking to?",
)  # fmt: skip
_IDENTITY = (
    "I am Doge, a small language model trained by the SmallDoge community on the Doge architecture.",
    "My name is Doge. I am a small language model, trained by the SmallDoge community on the Doge architecture.",
)
_REFUSED_START = re.compile(
    r"(?:\W|args?\b|arguments?:|parameters?:|returns?:|examples?:|usage:|see\b|same as\b|like\b|alias\b|deprecated|"
    r"todo|note:|warning:|copyright|this file|auto-?generated|.{0,60}:\s*\S+,|inherit)",
    re.I,
)
_REFUSED = re.compile(r">>>|https?:|\.\. |::|\$|\bTODO\b|\bFIXME\b|#\d|\\|\||[{}<>=]{2,}|\bCopyright\b|  ")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|resp|approx|eq|fig|no|incl|[A-Z])\.$", re.I)
_INDEX_LINE = re.compile(r"([\w.]+)(?:\((.*)\))?: (.+)")


def iter_conversations(documents: Iterable[dict] | None = None, seed: int = 0, packages: bool = True) -> Iterator[dict]:
    """Yield conversations of one question and one answer, in an order fixed by `seed`.

    Keys: `messages` (a user's and an assistant's), `id`, `group` (that of the document: split by it, so that no answer
    of a test document is trained on), `source`, `kind` (what, parameters, module or identity) and `topic` (the name
    asked about). `documents` are those of `iter_documents`; without them those of this
    machine are read, of the standard library alone where `packages` is false.
    """
    documents = list(cached_documents(packages) if documents is None else documents)
    subjects = [s for d in documents for s in _subjects(d)]
    short_names = Counter(name.rpartition(".")[2] for name, *_ in subjects)
    conversations = list(_identity())
    answers: set[str] = set()
    asked: set[str] = set()
    for name, kind, module, parameters, text, group in subjects:
        rng = random.Random(f"{seed}:{kind}:{name}")
        answer = short_answer(text)
        if not answer or answer.lower() in answers or name in asked or len(name) > LONGEST_NAME:
            continue
        answers.add(answer.lower())
        asked.add(name)
        conversations.append(_conversation(rng.choice(_WHAT[kind]).format(name), answer, "what", name, group))
        if 1 <= len(parameters) <= MOST_PARAMETERS and rng.random() < 0.2:
            listed = _listed([f"`{p}`" for p in parameters])
            noun = "parameter" if len(parameters) == 1 else "parameters"
            told = f"`{name}` takes the {noun} {listed}."
            conversations.append(_conversation(rng.choice(_PARAMETERS).format(name), told, "parameters", name, group))
        short = name.rpartition(".")[2]
        if (
            kind in ("function", "class")
            and module
            and short_names[short] == 1
            and len(short) > 3
            and rng.random() < 0.2
        ):
            told = f"`{short}` is in the module `{module}`."
            conversations.append(_conversation(rng.choice(_MODULE).format(short), told, "module", name, group))
    random.Random(seed).shuffle(conversations)
    yield from conversations


def short_answer(doc: str) -> str:
    """The first sentence of a documentation text, or the first two where one is short; empty where it will not do."""
    paragraph = " ".join(doc.split("\n\n", 1)[0].split())
    sentences = _sentences(re.sub(r"\*(\w[^*]*)\*", r"`\1`", plain_inline(paragraph)))
    answer = sentences[0]
    if len(answer) < 60 and len(sentences) > 1 and len(answer) + len(sentences[1]) < 200:
        answer = f"{answer} {sentences[1]}"
    answer = answer.strip()
    if _REFUSED_START.match(answer.lstrip("`")) or _REFUSED.search(answer):
        return ""
    answer = answer[0].upper() + answer[1:]
    if answer[-1].isalnum() or (answer[-1] in "`)" and not answer.endswith(".)")):
        answer += "."
    balanced = answer.count("`") % 2 == 0 and answer.count("(") == answer.count(")") and answer.count('"') % 2 == 0
    fits = SHORTEST_ANSWER <= len(answer) <= LONGEST_ANSWER
    return answer if fits and balanced and answer.endswith((".", "!", ".)")) and is_english(answer) else ""


def _sentences(text: str) -> list[str]:
    sentences = [""]
    for piece in re.split(r"(?<=[.!?])\s+", text):
        if sentences[-1] and (_ABBREVIATION.search(sentences[-1]) or piece[:1].islower()):
            sentences[-1] += f" {piece}"
        elif sentences[-1]:
            sentences.append(piece)
        else:
            sentences[-1] = piece
    return sentences


def _subjects(document: dict) -> Iterator[tuple[str, str, str, list[str], str, str]]:
    """What a document says something about: (name, kind, module, parameters, text, group)."""
    kind, group, module = document["kind"], document["group"], document["module"]
    if kind in _WHAT:
        name = document["text"].split("\n", 1)[0].split(" ", 1)[1].split("(", 1)[0]
        yield name, kind, module or "builtins", document["parameters"], document["doc"], group
    elif kind == "index":
        for line in document["doc"].split("\n"):
            if match := _INDEX_LINE.fullmatch(line):
                name, _, text = match.groups()
                is_class = name.rpartition(".")[2][:1].isupper()
                yield name, "class" if is_class else "entry", "", [], text, group


def _conversation(question: str, answer: str, kind: str, topic: str, group: str) -> dict:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "id": f"{topic}#{kind}",
        "group": group,
        "source": SOURCE,
        "kind": kind,
        "topic": topic,
    }


def _identity() -> Iterator[dict]:
    for number, question in enumerate(_WHO):
        answer = _IDENTITY[number % len(_IDENTITY)]
        yield _conversation(question, answer, "identity", f"doge{number}", "identity")


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
