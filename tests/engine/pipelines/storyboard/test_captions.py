"""Subtitles of real texts: the rules of the trade, and that they read well."""

# ruff: noqa: RUF001 - look-alike punctuation is what these tests are about

from __future__ import annotations

from typing import Literal
from unicodedata import category, east_asian_width

import pytest

from engine.pipelines.storyboard.words import split
from tests.engine.pipelines.storyboard.boards import (
    TEXTS,
    UNSPACED,
    assert_keeps_the_rules,
    bare,
    draw,
    read_webvtt,
)

PACES = [80, 127, 150, 300]
SPACED = sorted(TEXTS.keys() - UNSPACED)


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("language", TEXTS)
def test_every_language_at_every_pace_keeps_the_rules(language: str, pace: int) -> None:
    board = draw(TEXTS[language], words_per_minute=pace)
    cues = assert_keeps_the_rules(board)
    assert bare("".join(line for cue in cues for line in cue.lines)) == bare(TEXTS[language])


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("language", SPACED)
def test_words_are_those_that_white_space_parts_whole_and_in_order(language: str, pace: int) -> None:
    board = draw(TEXTS[language], words_per_minute=pace)
    words = TEXTS[language].split()
    shown = [
        word
        for cue in read_webvtt(board["captions"]["webvtt"])
        for line in cue.lines
        for word in line.split()
    ]
    assert shown == words
    assert [word for harness in board["scenes"] for word in harness["narration"].split()] == words
    assert board["word_count"] == len(words)


@pytest.mark.parametrize("pace", PACES)
def test_the_narration_takes_its_words_time_at_the_pace_asked_for(pace: int) -> None:
    board = draw(TEXTS["english"], words_per_minute=pace)
    assert board["word_count"] > 1000
    assert board["duration_seconds"] == pytest.approx(board["word_count"] * 60 / pace, abs=0.001)


@pytest.mark.parametrize(("language", "characters_a_word"), [("chinese", 2), ("japanese", 2), ("thai", 4)])
def test_without_spaces_characters_stand_for_words(language: str, characters_a_word: int) -> None:
    letters = sum(character.isalnum() for character in TEXTS[language])
    board = draw(TEXTS[language])
    assert board["word_count"] == pytest.approx(letters / characters_a_word, rel=0.1)
    assert board["duration_seconds"] == pytest.approx(board["word_count"] * 60 / 150, rel=0.05)


@pytest.mark.parametrize("language", SPACED)
def test_what_fits_in_one_line_stands_in_one_line(language: str) -> None:
    for cue in read_webvtt(draw(TEXTS[language])["captions"]["webvtt"]):
        assert len(cue.lines) == 1 or len(" ".join(cue.lines)) > 42 or language == "korean"


def test_most_cues_of_prose_end_at_punctuation_and_are_neither_scraps_nor_lopsided() -> None:
    cues = read_webvtt(draw(TEXTS["english"])["captions"]["webvtt"])
    stopped = [cue for cue in cues if not cue.lines[-1][-1].isalnum()]
    assert len(stopped) > 0.8 * len(cues)
    assert sum(len(" ".join(cue.lines)) for cue in cues) / len(cues) > 45
    pairs = [sorted(map(len, cue.lines)) for cue in cues if len(cue.lines) == 2]
    assert sum(short / long for short, long in pairs) / len(pairs) > 0.75


def test_an_abbreviation_an_ordinal_and_a_french_mark_stay_with_their_word() -> None:
    for language in ("german", "french"):
        for cue in read_webvtt(draw(TEXTS[language], words_per_minute=110)["captions"]["webvtt"]):
            assert not cue.lines[-1].endswith(("Dr.", " 3.", "bzw.", "«"))
            assert not any(line.startswith(("!", "?", ":", "»")) for line in cue.lines)


@pytest.mark.parametrize("language", ["chinese", "japanese"])
def test_no_line_starts_with_a_closing_mark_or_ends_with_an_opening_one(language: str) -> None:
    text = TEXTS[language].replace("\n", "") + ("あ" * 21 + "。") * 20
    for shift in range(0, 60, 7):
        for cue in read_webvtt(draw(f"x{text[shift:]}")["captions"]["webvtt"]):
            for line in cue.lines:
                assert line[0] not in "，。、？！：；」』）”ーっゃゅょ"
                assert line[-1] not in "「『（“"


@pytest.mark.parametrize("text", ["ខ្មែរ។" * 100, "เก่า" * 100, "น้ำ" * 100, "མི་" * 100])
def test_no_break_parts_a_letter_from_its_marks(text: str) -> None:
    assert_keeps_the_rules(draw(text))
    for word in split(text):
        assert category(word.text[0]) == "Lo"
        assert word.text[0] != "\u0e33"
        assert word.text[-1] not in "เ\u17d2"


def test_a_phrase_in_chinese_or_thai_is_not_parted_while_another_break_will_do() -> None:
    for language, phrases in {
        "chinese": ("iPhone", "2024", "石桥", "铜钱"),
        "thai": ("โรงเรียน", "อากาศ"),
    }.items():
        shown = read_webvtt(draw(TEXTS[language])["captions"]["webvtt"])
        lines = [line for cue in shown for line in cue.lines]
        assert all(any(phrase in line for line in lines) for phrase in phrases)


def test_a_word_wider_than_a_line_stands_whole_on_one_of_its_own() -> None:
    address = "https://example.com/" + "a-long-path/" * 8
    cues = assert_keeps_the_rules(draw(f"Look at {address} and tell us what you think of it."))
    assert [line for cue in cues for line in cue.lines if "example" in line] == [address]


def test_a_sentence_is_not_cut_where_its_rest_would_be_too_short_for_a_cue() -> None:
    for count in range(12, 60):
        board = draw("so " * count + "so, it ends.", words_per_minute=300)
        assert board["duration_seconds"] == pytest.approx((count + 3) * 0.2, abs=0.001)


def test_a_word_said_in_less_than_a_second_stays_for_one() -> None:
    board = draw("Stop!", words_per_minute=300)
    assert [(cue.start, cue.end) for cue in assert_keeps_the_rules(board)] == [(0, 1000)]
    assert board["word_count"] == 1


def test_short_sentences_share_a_cue_rather_than_rush() -> None:
    cues = assert_keeps_the_rules(draw("No. Yes. Why? " * 40, words_per_minute=300))
    assert draw("No. Yes. Why? " * 40, words_per_minute=300)["duration_seconds"] == pytest.approx(24, abs=1)
    assert len(cues) <= 24


@pytest.mark.parametrize("pace", [80, 150])
@pytest.mark.parametrize("text", [*TEXTS.values(), "Donaudampfschifffahrtsgesellschaft verdient. " * 40])
def test_nobody_has_to_read_more_than_twenty_characters_a_second(text: str, pace: int) -> None:
    for cue in assert_keeps_the_rules(draw(text, words_per_minute=pace)):
        columns = sum(len(line) + sum(east_asian_width(c) in "WF" for c in line) for line in cue.lines)
        assert columns <= 20 * (cue.end - cue.start + 1) / 1000 or cue.end - cue.start == 7000


def test_a_narration_twice_as_fast_is_read_at_most_twice_as_fast() -> None:
    for cue in assert_keeps_the_rules(draw("Unquestionably incomprehensible. " * 40, words_per_minute=300)):
        assert len("".join(cue.lines)) <= 40 * (cue.end - cue.start + 1) / 1000


@pytest.mark.parametrize("form", ["plain", "markdown"])
def test_paragraphs_and_items_share_no_line(form: Literal["plain", "markdown"]) -> None:
    items = [
        "milk",
        "eggs",
        "a loaf of bread",
        "tea",
        "the long item that needs a second line of the cue to be shown",
    ]
    script = "\n\n".join(items) if form == "plain" else "".join(f"- {item}\n" for item in items)
    shown = [line for cue in assert_keeps_the_rules(draw(script, format=form)) for line in cue.lines]
    assert shown[:4] == items[:4]
    assert " ".join(shown[4:]) == items[4]


def test_text_is_never_taken_for_mark_up_or_timing_in_webvtt() -> None:
    script = "Then <b>press</b> & hold --> 00:00:01.000 --> 00:00:02.000 <v Roger>and\n\nNOTE wait\n\nSTYLE"
    board = draw(script)
    assert_keeps_the_rules(board)
    payload = [line for line in board["captions"]["webvtt"].splitlines() if " --> 00" not in line]
    assert not any(mark in line for line in payload for mark in ("<", ">", "-->"))
    assert "&lt;b&gt;press&lt;/b&gt; &amp; hold" in board["captions"]["webvtt"]


def test_the_same_script_gives_the_same_storyboard() -> None:
    assert draw(TEXTS["english"]) == draw(TEXTS["english"])
