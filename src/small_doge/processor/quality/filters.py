"""Filters that look at one text alone: its length, how much it repeats itself, and its language."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from small_doge.processor.quality.words import words_of

# Share of a text's letters that are of a script, for languages with a script of their own.
SCRIPTS = {
    "zh": re.compile(r"[\u4e00-\u9fff]"),
    "ja": re.compile(r"[\u3040-\u30ff]"),
    "ko": re.compile(r"[\uac00-\ud7af]"),
    "ru": re.compile(r"[\u0400-\u04ff]"),
    "ar": re.compile(r"[\u0600-\u06ff]"),
    "el": re.compile(r"[\u0370-\u03ff]"),
    "he": re.compile(r"[\u0590-\u05ff]"),
    "hi": re.compile(r"[\u0900-\u097f]"),
    "th": re.compile(r"[\u0e00-\u0e7f]"),
}
# The words that occur most and tell languages in Latin script apart.
FUNCTION_WORDS = {
    "en": "the of and to in is that for with as are this by be from or on it not which",
    "de": "der die und das ist nicht ein eine den von zu mit auf für dem sich des auch wird als",
    "fr": "le la les des et est une dans pour que qui pas sur par du au avec sont cette ce",
    "es": "el los las una que por con para del es se como más pero sus este esta son al lo",
    "it": "il di che per una con del della è sono nel non alla gli dei anche come più le ha",
    "pt": "os uma não para com do da em por que mais dos como foi ao pela sua ser na no",
    "nl": "het een van dat niet zijn op voor met ook aan door bij wordt deze naar uit maar werd",
}
_LETTER = re.compile(r"[^\W\d_]")
LANGUAGE_SAMPLE = 4000


def length_filter(least: int, most: int | None = None) -> Callable[[str], str | None]:
    """A block that leaves out texts of fewer than `least` or more than `most` characters."""

    def block(text: str) -> str | None:
        if len(text) < least:
            return f"shorter than {least} characters"
        if most is not None and len(text) > most:
            return f"longer than {most} characters"
        return None

    return block


def repetition_filter(text: str) -> str | None:
    """Why a text repeats itself too much, or None.

    The limits on repeated lines, on the commonest runs of 2 to 4 words and on words in repeated runs of 10 are those of
    "Scaling Language Models" (Gopher), arXiv 2112.11446, table A1. Short texts (under 50 words) are not judged.
    """
    words = words_of(text)
    if len(words) < 50:
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    repeated = sum(len(line) * (count - 1) for line, count in Counter(lines).items() if count > 1)
    if repeated > 0.2 * sum(map(len, lines)):
        return "repeated lines"
    characters = sum(map(len, words))
    for size, limit in ((2, 0.20), (3, 0.18), (4, 0.16)):
        gram, count = Counter(zip(*(words[i:] for i in range(size)), strict=False)).most_common(1)[0]
        if count > 1 and count * sum(map(len, gram)) > limit * characters:
            return f"one run of {size} words all over"
    if _in_repeated_runs(words, 10) > 0.10 * characters:
        return "repeated runs of 10 words"
    return None


def _in_repeated_runs(words: list[str], size: int) -> int:
    """Characters of the words that lie in a run of `size` words which was there before."""
    seen: set[tuple[str, ...]] = set()
    characters, upto = 0, 0
    for start in range(len(words) - size + 1):
        run = tuple(words[start : start + size])
        if run in seen:
            characters += sum(map(len, words[max(start, upto) : start + size]))
            upto = start + size
        seen.add(run)
    return characters


def language_of(text: str) -> str | None:
    """The language of a text as a two-letter code, or None where it cannot be told (too short, code, mixed).

    Languages with a script of their own go by it; the others by their commonest words, of which at least 8 % of the
    words must be. Only the first 4,000 characters are looked at.
    """
    sample = text[:LANGUAGE_SAMPLE]
    letters = len(_LETTER.findall(sample))
    if letters < 20:
        return None
    shares = {code: len(script.findall(sample)) / letters for code, script in SCRIPTS.items()}
    if shares["ja"] > 0.1:
        return "ja"
    # A Chinese character says as much as several letters, so a text full of code and names is still Chinese.
    limits = {"zh": 0.05}
    code = max(shares, key=lambda name: shares[name])
    if shares[code] > limits.get(code, 0.3):
        return code
    words = Counter(re.findall(r"[^\W\d_]+", sample.lower()))
    total = sum(words.values())
    hits = {code: sum(words[word] for word in common.split()) for code, common in FUNCTION_WORDS.items()}
    first, second = sorted(hits, key=lambda name: -hits[name])[:2]
    if hits[first] < 0.08 * total or hits[first] < 1.2 * hits[second]:
        return None
    return first


def language_filter(languages: Sequence[str]) -> Callable[[str], str | None]:
    """A block that leaves out texts in other languages than these; one whose language cannot be told stays.

    Raises:
        ValueError: a language that cannot be told.
    """
    known = {*SCRIPTS, *FUNCTION_WORDS}
    if unknown := set(languages) - known:
        raise ValueError(
            f"Cannot tell the languages {', '.join(sorted(unknown))}: choose of {', '.join(sorted(known))}."
        )

    def block(text: str) -> str | None:
        language = language_of(text)
        return f"language {language}" if language is not None and language not in languages else None

    return block
