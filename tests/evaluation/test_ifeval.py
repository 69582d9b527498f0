"""Each of IFEval's instructions is told apart from its breach."""

import json

import pytest

from small_doge.evaluation.ifeval import CHECKS, follows, variants
from small_doge.evaluation.metrics import followed, same_mathematics, same_number

CASES = {
    "change_case:capital_word_frequency": (
        {"capital_relation": "less than", "capital_frequency": 2},
        "One BIG word",
        "TWO BIG",
    ),
    "change_case:english_capital": ({}, "THIS IS AN ENGLISH SENTENCE.", "This is an English sentence."),
    "change_case:english_lowercase": ({}, "this is an english sentence.", "This is an English sentence."),
    "combination:repeat_prompt": ({}, "Say it. Well, here it is.", "Here it is."),
    "combination:two_responses": ({}, "one ****** two", "one ****** one"),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[name] of [place]", "[name]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Bye.\nP.S. Hello", "Bye."),
    "detectable_format:constrained_response": ({}, "My answer is no.", "No."),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "{a: 1}"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1 a Section 2 b",
        "Section 1 a",
    ),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a* and *b*", "*a* and **"),
    "detectable_format:title": ({}, "<<A title>>\ntext", "<< >>\ntext"),
    "keywords:existence": ({"keywords": ["cat", "dog"]}, "A Cat and a dog", "a cat"),
    "keywords:forbidden_words": ({"forbidden_words": ["kid"]}, "a kidney", "a Kid"),
    "keywords:frequency": ({"keyword": "cat", "relation": "at least", "frequency": 2}, "cat, Cat", "cat"),
    "keywords:letter_frequency": ({"letter": "l", "let_relation": "less than", "let_frequency": 2}, "la", "Lull"),
    "language:response_language": ({"language": "de"}, "Das ist ein deutscher Satz.", "This is an English sentence."),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First.\n\nThen, more.",
        "First.\n\nMore.",
    ),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "one\n***\ntwo", "one"),
    "length_constraints:number_sentences": ({"relation": "less than", "num_sentences": 3}, "One. Two!", "A. B? C."),
    "length_constraints:number_words": ({"relation": "at least", "num_words": 3}, "one two three", "one two"),
    "punctuation:no_comma": ({}, "no comma", "one, comma"),
    "startend:end_checker": ({"end_phrase": "The end."}, "All. the end. ", "The end. Or not"),
    "startend:quotation": ({}, '"quoted"', '"half'),
}


def test_every_instruction_has_a_case():
    assert set(CASES) == set(CHECKS)


@pytest.mark.parametrize("instruction", sorted(CASES))
def test_following_is_told_from_breaking(instruction):
    pytest.importorskip("langdetect", reason="langdetect is not installed: pip install 'small-doge[eval]'")
    setting, good, bad = CASES[instruction]
    assert follows(instruction, good, "Say it.", setting)
    assert not follows(instruction, bad, "Say it.", setting)
    assert not follows(instruction, " ", "Say it.", setting)


def test_an_unknown_instruction_is_refused():
    with pytest.raises(ValueError, match="no instruction"):
        follows("keywords:none", "text", "", {})


def test_the_loose_score_forgives_a_first_line():
    assert len(variants("a\nb")) == 8
    doc = {
        "prompt": "",
        "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
        "kwargs": json.dumps([{}, {"keywords": ["cat"]}]),
    }
    assert followed(doc, ["Sure, here:\na cat"]) == {
        "prompt_strict": 0.0,
        "instruction_strict": 0.5,
        "prompt_loose": 1.0,
        "instruction_loose": 1.0,
    }


def test_answers_to_problems_are_compared_as_numbers_and_as_mathematics():
    assert same_number({"answer": "so 3\n#### 1,200"}, ["3 and 5 is 1200."]) == {"exact_match": 1.0}
    assert same_number({"answer": "#### 12"}, ["13"]) == {"exact_match": 0.0}
    assert same_number({"answer": "#### 12"}, ["<think>12</think> 13"]) == {"exact_match": 0.0}
    pytest.importorskip("math_verify", reason="math-verify is not installed: pip install 'small-doge[eval]'")
    assert same_mathematics({"answer": "\\frac{1}{2}"}, ["so it is $0.5$"]) == {"exact_match": 1.0}
    assert same_mathematics({"answer": "\\frac{1}{2}"}, ["so it is $\\boxed{2}$"]) == {"exact_match": 0.0}
