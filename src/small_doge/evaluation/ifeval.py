"""The 25 verifiable instructions of IFEval (arXiv 2311.07911), each a check of a text, without nltk or a download.

Rules are those of the paper's code, with two approximations: sentences end at `.`, `!` or `?` before a space or the
end (the paper uses nltk's punkt), and words are runs of letters, digits and underscores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

CONSTRAINED_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def follows(instruction: str, text: str, prompt: str, setting: dict[str, Any]) -> bool:
    """Whether the text follows an instruction such as `keywords:existence`; an empty text follows none.

    Args:
        prompt: What was asked, for `combination:repeat_prompt` without a text of its own.
        setting: The instruction's arguments; those that are None count as absent.

    Raises:
        ValueError: an instruction that is not IFEval's.
    """
    check = CHECKS.get(instruction)
    if check is None:
        raise ValueError(f"there is no instruction {instruction!r}: the known ones are {', '.join(sorted(CHECKS))}.")
    given = {name: value for name, value in setting.items() if value is not None}
    if instruction == "combination:repeat_prompt":
        given.setdefault("prompt_to_repeat", prompt)
    return bool(text.strip()) and bool(check(text, **given))


def variants(text: str) -> list[str]:
    """The eight readings of the loose score: without the first line, the last, both, and each without asterisks."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return cut + [part.replace("*", "") for part in cut]


def compare(count: int, relation: str, threshold: int) -> bool:
    """Whether a count is `less than` or `at least` a threshold."""
    return count < threshold if relation == "less than" else count >= threshold


def occurrences(pattern: str, text: str) -> int:
    """Matches of a pattern in any case."""
    return len(re.findall(pattern, text, re.IGNORECASE))


def count_sentences(text: str) -> int:
    """Runs of text that end a sentence, or the text."""
    return len([part for part in re.split(r"(?<=[.!?])[\"')\]]*\s+", text.strip()) if part])


def count_highlights(text: str) -> int:
    """`*spans*` and `**spans**` with something in them; a double one counts for both, as in the paper's code."""
    single = [span for span in re.findall(r"\*[^\n*]*\*", text) if span.strip("*").strip()]
    double = [span for span in re.findall(r"\*\*[^\n*]*\*\*", text) if span.strip("*").strip()]
    return len(single) + len(double)


def is_language(text: str, language: str) -> bool:
    """Whether langdetect takes the text for that language; a text in which it finds none passes."""
    import langdetect

    langdetect.DetectorFactory.seed = 0
    try:
        return langdetect.detect(text) == language
    except langdetect.LangDetectException:
        return True


def is_json(text: str) -> bool:
    """Whether the text is JSON, in a fence or not."""
    body = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def has_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Whether `***` parts the text into so many paragraphs, none empty but at the ends."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(parts[1:-1]) and len([part for part in parts if part]) == num_paragraphs


def paragraph_begins(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Whether there are so many paragraphs, parted by empty lines, and the n-th begins with the word."""
    parts = re.split(r"\n\n", text)
    if len([part for part in parts if part.strip()]) != num_paragraphs or nth_paragraph > len(parts):
        return False
    words = parts[nth_paragraph - 1].split()
    found = re.match(r"[^.,?!'\"]*", words[0].lstrip("'\"").lower()) if words else None
    return found is not None and found.group() == first_word.lower()


def has_postscript(text: str, postscript_marker: str) -> bool:
    """Whether a line holds the marker, its letters perhaps apart."""
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(patterns.get(postscript_marker, re.escape(postscript_marker)), text, re.IGNORECASE) is not None


def two_answers(text: str) -> bool:
    """Whether `******` parts the text into two different answers."""
    parts = [part.strip() for part in text.split("******")]
    return all(parts[1:-1]) and len(set(filter(None, parts))) == 2 == len([part for part in parts if part])


def shouted_words(text: str) -> int:
    """Words in capitals."""
    return len([word for word in re.findall(r"[\w'-]+", text) if word.isupper()])


CHECKS: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": lambda text, capital_relation, capital_frequency: compare(
        shouted_words(text), capital_relation, capital_frequency
    ),
    "change_case:english_capital": lambda text: text.isupper() and is_language(text, "en"),
    "change_case:english_lowercase": lambda text: text.islower() and is_language(text, "en"),
    "combination:repeat_prompt": lambda text, prompt_to_repeat: (
        text.strip().lower().startswith(prompt_to_repeat.strip().lower())
    ),
    "combination:two_responses": two_answers,
    "detectable_content:number_placeholders": lambda text, num_placeholders: (
        len(re.findall(r"\[.*?\]", text)) >= num_placeholders
    ),
    "detectable_content:postscript": has_postscript,
    "detectable_format:constrained_response": lambda text: any(answer in text for answer in CONSTRAINED_ANSWERS),
    "detectable_format:json_format": is_json,
    "detectable_format:multiple_sections": lambda text, section_spliter, num_sections: (
        len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", text)) >= num_sections
    ),
    "detectable_format:number_bullet_lists": lambda text, num_bullets: (
        len(re.findall(r"^\s*(?:\*[^*].*|-.*)$", text, re.MULTILINE)) == num_bullets
    ),
    "detectable_format:number_highlighted_sections": lambda text, num_highlights: (
        count_highlights(text) >= num_highlights
    ),
    "detectable_format:title": lambda text: any(title.strip("<> \t") for title in re.findall(r"<<[^\n]+>>", text)),
    "keywords:existence": lambda text, keywords: all(occurrences(word, text) for word in keywords),
    "keywords:forbidden_words": lambda text, forbidden_words: (
        not any(occurrences(rf"\b{word}\b", text) for word in forbidden_words)
    ),
    "keywords:frequency": lambda text, keyword, relation, frequency: compare(
        occurrences(keyword, text), relation, frequency
    ),
    "keywords:letter_frequency": lambda text, letter, let_relation, let_frequency: compare(
        text.lower().count(letter.lower()), let_relation, let_frequency
    ),
    "language:response_language": is_language,
    "length_constraints:nth_paragraph_first_word": paragraph_begins,
    "length_constraints:number_paragraphs": has_paragraphs,
    "length_constraints:number_sentences": lambda text, relation, num_sentences: compare(
        count_sentences(text), relation, num_sentences
    ),
    "length_constraints:number_words": lambda text, relation, num_words: compare(
        len(re.findall(r"\w+", text)), relation, num_words
    ),
    "punctuation:no_comma": lambda text: "," not in text,
    "startend:end_checker": lambda text, end_phrase: (
        text.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    ),
    "startend:quotation": lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
}
"""By the names of the data set."""
