from __future__ import annotations

import io
import json
import random

import numpy as np
import pytest

from small_doge.processor.documents import Document
from small_doge.processor.pt_datasets_process import mix_datasets_by_ratio
from small_doge.processor.quality import QualityOptions, apply_blocks, quality_options
from small_doge.processor.quality.decontamination import Decontamination, evaluation_grams
from small_doge.processor.quality.duplicates import ExactDuplicates, NearDuplicates
from small_doge.processor.quality.filters import language_filter, language_of, length_filter, repetition_filter
from small_doge.processor.quality.words import gram_hashes, words_of
from small_doge.processor.report import Report


def real_texts(data_folder, name, count):
    import zstandard

    with open(data_folder / f"{name}.jsonl.zst", "rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        return [json.loads(line)["text"] for _, line in zip(range(count), lines, strict=False)]


def words(seed, count):
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefghij", k=rng.randint(2, 8))) for _ in range(count)]


class TestWords:
    def test_words_are_lower_case_runs_and_single_chinese_characters(self):
        assert words_of("The cat's 3 Hüte: 小狗 ok_no") == ["the", "cat", "s", "3", "hüte", "小", "狗", "ok", "no"]

    def test_each_run_of_words_has_its_own_hash(self):
        hashes = gram_hashes(words(0, 5000), 3)
        assert len(hashes) == 4998
        assert len(set(hashes.tolist())) == 4998

    def test_equal_runs_have_equal_hashes_and_order_matters(self):
        a, b = gram_hashes(["x", "y", "z", "x", "y"], 2), gram_hashes(["y", "x"], 2)
        assert a[0] == a[3] != b[0]
        assert len(gram_hashes(["x"], 2)) == 0


class TestLengthAndRepetition:
    def test_length_keeps_what_lies_between(self):
        block = length_filter(3, 5)
        assert [block("ab"), block("abc"), block("abcde")] == ["shorter than 3 characters", None, None]
        assert block("abcdef") == "longer than 5 characters"

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("\n".join(["the very same line of words here"] * 20), "repeated lines"),
            (" ".join(["buy now"] * 60), "one run of 2 words all over"),
            (" ".join([*words(1, 60), *words(2, 30), *words(3, 60), *words(2, 30)]), "repeated runs of 10 words"),
        ],
    )
    def test_repetition_is_named(self, text, reason):
        assert repetition_filter(text) == reason

    def test_text_without_repetition_and_short_text_stay(self):
        assert repetition_filter(" ".join(words(4, 500))) is None
        assert repetition_filter("buy now buy now") is None

    @pytest.mark.data
    @pytest.mark.parametrize("name", ["pretrain/wiki_en-00", "pretrain/openstax_by-00", "pretrain/wiki_zh-00"])
    def test_good_real_text_mostly_stays(self, data_folder, name):
        texts = real_texts(data_folder, name, 300)
        assert sum(repetition_filter(text) is None for text in texts) > 0.9 * len(texts)

    @pytest.mark.data
    def test_real_text_made_to_repeat_goes(self, data_folder):
        texts = [text[:2000] for text in real_texts(data_folder, "pretrain/wiki_en-00", 300) if len(text) > 1000]
        assert all(repetition_filter(f"{text}\n{text}\n{text}") is not None for text in texts)


class TestLanguage:
    @pytest.mark.parametrize(
        ("text", "language"),
        [
            ("The values of the list are sorted by the function, and it returns the mean of them.", "en"),
            ("Der Hund ist nicht in dem Haus, und die Katze wird von einer Maus gejagt, die das nicht will.", "de"),
            ("Le chien est dans la maison et les chats sont sur le toit, mais il ne pleut pas pour une fois.", "fr"),
            ("El perro está en la casa de los vecinos y no es para nada un gato, pero se parece más a uno.", "es"),
            ("小狗在公园里跑来跑去，主人坐在长椅上看书，天气非常好。", "zh"),
            ("犬は公園で走っていました。とても良い天気でした。", "ja"),
            ("Собака бежит по парку, а хозяин читает книгу на скамейке.", "ru"),
            ("x = f(1); y = g(2); z = [a, b, c, d, e]; return foo_bar(baz, qux)", None),
            ("ok", None),
        ],
    )
    def test_the_language_is_told(self, text, language):
        assert language_of(text) == language

    def test_other_languages_go_and_what_cannot_be_told_stays(self):
        block = language_filter(["en"])
        assert block("小狗在公园里跑来跑去，主人坐在长椅上看书，天气非常好。") == "language zh"
        assert block("x = 1") is None
        with pytest.raises(ValueError, match="Cannot tell the languages xx"):
            language_filter(["en", "xx"])

    @pytest.mark.data
    @pytest.mark.parametrize(
        ("name", "language"),
        [("wiki_en-00", "en"), ("books_100novels-00", "en"), ("wiki_zh-00", "zh"), ("zh_d2l-00", "zh")],
    )
    def test_real_text_is_told_right_nearly_always(self, data_folder, name, language):
        texts = [text for text in real_texts(data_folder, f"pretrain/{name}", 500) if len(text) > 200]
        found = [language_of(text) for text in texts]
        assert sum(code not in (language, None) for code in found) <= 0.01 * len(found)
        assert found.count(language) > 0.9 * len(found)


class TestDuplicates:
    def test_the_first_of_equal_texts_stays(self):
        block = ExactDuplicates()
        assert [block(text) for text in ("a b", "c", "a  b\n", "A b")] == [None, None, "exact duplicate", None]

    def test_signatures_estimate_how_much_texts_share(self):
        block = NearDuplicates()
        one = words(0, 2000)
        other = [*one[:1500], *words(9, 500)]
        a, b = (set(gram_hashes(text, 5).tolist()) for text in (one, other))
        shared = len(a & b) / len(a | b)
        estimate = np.mean(block.signature(" ".join(one)) == block.signature(" ".join(other)))
        assert abs(estimate - shared) < 0.12

    def test_a_text_with_a_few_words_changed_is_a_near_duplicate_and_others_are_not(self):
        block = NearDuplicates()
        texts = [words(seed, 300) for seed in range(40)]
        assert all(block(" ".join(text)) is None for text in texts)
        changed = [[*text[:100], "new", *text[101:]] for text in texts]
        assert all(block(" ".join(text)) == "near duplicate" for text in changed)
        assert block("few words") is None

    @pytest.mark.data
    def test_real_articles_are_not_taken_for_one_another_but_edited_ones_are(self, data_folder):
        texts = [text for text in real_texts(data_folder, "pretrain/docs_peps-00", 150) if len(text) > 3000]
        block = NearDuplicates()
        assert sum(block(text) is not None for text in texts) <= 0.02 * len(texts)
        edited = [text.replace("Python", "Snake", 5) + "\nOne more line at the end." for text in texts]
        assert sum(block(text) is not None for text in edited) >= 0.95 * len(edited)


class TestDecontamination:
    QUESTION = " ".join(f"word{i}" for i in range(20))

    def test_a_text_with_13_words_of_a_question_goes_and_with_12_stays(self, write_jsonl):
        path = write_jsonl("eval.jsonl", [{"q": {"text": self.QUESTION, "choices": ["short one"]}}])
        block = Decontamination(evaluation_grams([path]))
        run = self.QUESTION.split()
        assert block(f"Before it, {', '.join(run[3:16]).upper()}; after.") is not None
        assert block(f"before {' '.join(run[3:15])} after") is None
        assert block("short one") is None

    def test_evaluation_data_without_long_text_is_refused(self, write_jsonl):
        path = write_jsonl("eval.jsonl", [{"q": "too short"}])
        with pytest.raises(ValueError, match="13 words in a row"):
            evaluation_grams([path])

    @pytest.mark.data
    def test_real_evaluation_text_is_found_in_training_text(self, data_folder):
        path = data_folder / "eval" / "hellaswag_val.jsonl.zst"
        block = Decontamination(evaluation_grams([str(path)]))
        clean = real_texts(data_folder, "pretrain/docs_rust_rfcs-00", 100)
        assert sum(block(text) is not None for text in clean) <= 1
        import zstandard

        with open(path, "rb") as file:
            rows = [json.loads(line) for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file))][
                :50
            ]
        long = [max((v for v in row.values() if isinstance(v, str)), key=len) for row in rows]
        planted = [
            f"{text[:500]} {leak} {text[500:900]}"
            for text, leak in zip(clean, long, strict=False)
            if len(leak.split()) > 20
        ]
        assert len(planted) > 20
        assert all(block(text) is not None for text in planted)


def test_blocks_count_what_they_leave_out_by_the_first_reason():
    texts = ["short", "the same long text", "the same long text", "another long text"]
    report = Report()
    report.read["s"] = report.kept["s"] = 4
    blocks = QualityOptions(min_characters=10, exact_duplicates=True).blocks()
    documents = [Document(text, f"f:{i}") for i, text in enumerate(texts)]
    kept = [document.text for document in apply_blocks(documents, blocks, report, "s")]
    assert kept == ["the same long text", "another long text"]
    assert report.dropped["s"] == {"shorter than 10 characters": 1, "exact duplicate": 1}
    assert report.examples["exact duplicate"] == ["f:2"]
    report.check()


def test_no_option_makes_no_block():
    assert QualityOptions().blocks() == []


def test_a_pretraining_mix_leaves_out_duplicates_and_says_so(text_file, tokenizer, tmp_path):
    path = text_file("a.jsonl", 40)
    with open(path, encoding="utf-8") as file:
        lines = file.readlines()
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(lines[:15])
    options = {"processing_class": tokenizer, "cache_dir": tmp_path / "cache", "test_share": 0}
    mixed = mix_datasets_by_ratio([{path: 1.0}], quality={"exact_duplicates": True}, **options)
    assert mixed.report.read[path] == 55
    assert mixed.report.dropped[path] == {"exact duplicate": 15}
    assert mixed.report.figures["train"]["sequences"] == 40
    with pytest.raises(ValueError, match="no option 'dedup'"):
        mix_datasets_by_ratio([{path: 1.0}], quality={"dedup": True}, **options)


@pytest.mark.parametrize(
    ("given", "mend"),
    [
        ({"length": 3}, "no option 'length': use min_characters"),
        (True, "give its options"),
        ({"languages": "en"}, r"give a list, such as \[en\]"),
        ({"decontaminate": [3]}, "give a list"),
        ({"exact_duplicates": "yes"}, "give true or false"),
        ({"max_characters": "many"}, "a whole number of at least 0"),
    ],
    ids=str,
)
def test_options_that_cannot_be_meant_are_refused(given, mend):
    with pytest.raises(ValueError, match=mend):
        quality_options(given)
