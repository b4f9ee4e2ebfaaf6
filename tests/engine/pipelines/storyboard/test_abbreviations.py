"""Abbreviations end no cue, and spaces that hold words together do so."""

# ruff: noqa: RUF001 - look-alike punctuation is what these tests are about

from __future__ import annotations

import pytest

from engine.pipelines.storyboard.abbreviations import language_of
from engine.pipelines.storyboard.words import CLAUSE, KEEP, NONE, SENTENCE, split
from tests.engine.pipelines.storyboard.boards import TEXTS, assert_keeps_the_rules, draw, read_webvtt

# The sentences of a text are parted by a bar.
SENTENCES = {
    "en": [
        "That was Capt. Ahab with Gen. Grant and Lt. Col. Brown at Mt. Everest.|They left in Jan. 1920 for St. Louis.",
        "It took approx. 5 hours, e.g. Monday to Tues. morning.|See Fig. 3 of vol. 2, pp. 5 and Sec. 4.",
        "The work of Lee et al. (2019) and of Roy et al. shows this.|No. 5 is alive.|No.|It is not.",
        "Acme Inc. was sold to Foo Ltd. for the sum.|The U.S. dollar fell at 5 a.m. on Monday.",
        "Mr. and Mrs. J. R. Smith have a Ph.D. in law, i.e. a doctorate.|That is all.",
        "So do I.|Go on.|Come in.|Then sit with that and this.|1. Take it.|2. Give it.",
        "Prof. Jones vs. Dr. Brown, cf. Smith.|In 1990.|It was the end.",
        "The Rt. Hon. Bob and/or Dr. Jones met *Capt. Hook* and —Sgt. Bell, op. cit. 8, sect. 4, para. 3.|No.|Bob.",
        "That is Bob's.|It is a follow-up.|Check-in.|They don't.|The rest is in stand-by.|He left.",
    ],
    "de": [
        "Das ist z. B. Berlin, d. h. die Stadt.|Er kam bzw. Karl ging usw. und nicht Nr. 5 mit.",
        "Das war gut.|Am 3. Oktober kam Dr. Meier.",
        "Der Hr. Schmidt und die Fr. Koch, vgl. Abb. 3 und Bd. 2, ca. 5 Leute, ggf. Anna, d.h. alle.|Das ist gut.",
        "Das ist Dipl.-Ing. Müller und die Prof.-Dr. Schmidt mit Art.-Nr. 7 in der Hauptstr. hier.|Wer mag.|Du nicht.",
    ],
    "fr": [
        "C'est l'art. 3 et l'av. J.-C. dans une ville.",
        "Voir Mme. Durand et Mlle. Petit pour qui c'est d'env. 5.|L'est.|Il dort.",
        "M. Dupont et Mme Durand ont env. 3 enfants, p. ex. Luc, dans une maison.",
        "Il est pour lui et là.|Il est là.|C'est la mer.|Elle dort.",
    ],
    "es": [
        "El Sr. López y Ud. viven en EE. UU. desde 1990 con la Dra. Gómez.|Los dos están en la pág. 3.|No.|Sí."
    ],
    "it": [
        "Il sig. Neri e l'avv. Bianchi sono di Roma, dell'art. 5 e dell'ing. Rossi.|È il sec. XX.|Non dorme.",
        "Il Sig. Rossi e la Dott. Bianchi sono nel vol. 2, pag. 3.|Il Prof. Verdi dorme.",
    ],
    "pt": [
        "O sr. Silva e a dra. Costa não são dos dois.|Fim.",
        "O Sr. Silva e a Dra. Costa não são da Av. Brasil, p. ex. os dois.|Fim do livro.",
    ],
    "nl": ["Het is niet dhr. Jansen en mevr. Bakker, bijv. Anna, d.w.z. Piet, ca. 5.|Einde."],
    "ru": [
        "Это т. е. Москва.|В 1990 г. Москва росла.|Он живёт на ул. Ленина и т. д. в доме.|А. С. Пушкин писал."
    ],
    "": ["Capt. Ahab met Dr. Meier, z. B. Berlin.|1. First.|2. Second."],
}


@pytest.mark.parametrize(
    ("language", "text"), [(name, text) for name in SENTENCES for text in SENTENCES[name]]
)
def test_a_sentence_ends_where_it_ends(language: str, text: str) -> None:
    assert language_of(text) == language
    sentences = text.split("|")
    words = split(" ".join(sentences), language)
    ends = [at for at, word in enumerate(words, 1) if word.stop >= SENTENCE]
    expected, at = [], 0
    for sentence in sentences:
        at += len(sentence.split())
        expected.append(at)
    assert ends == expected


@pytest.mark.parametrize("pace", [80, 150, 300])
@pytest.mark.parametrize("shift", range(12))
def test_no_line_ends_with_an_abbreviation_that_its_next_word_explains(shift: int, pace: int) -> None:
    script = "and so " * shift + (
        "it was that Capt. Ahab and Gen. Grant went up Mt. Everest on Jan. 5 with approx. 9 men, as Fig. 3 of vol. 2"
        " of the log by Lee et al. (1920) shows to Prof. Brown, i.e. to Dr. Green of No. 10. "
    )
    for cue in assert_keeps_the_rules(draw(script * 4, words_per_minute=pace)):
        for line in cue.lines:
            assert line.endswith(" 10.") or not line.endswith("."), line


def test_a_sentence_in_small_letters_ends_like_a_clause() -> None:
    assert [word.stop for word in split("i went. then i slept.", "en")][1] == CLAUSE
    assert [word.stop for word in split("at approx. five", "en")][1] == KEEP
    assert [word.stop for word in split("it closed at 5 p.m. The dog ran", "en")][4] == NONE


@pytest.mark.parametrize("language", ["english", "french", "german", "russian"])
def test_the_language_of_a_text_is_told(language: str) -> None:
    assert (
        language_of(TEXTS[language])
        == {"english": "en", "french": "fr", "german": "de", "russian": "ru"}[language]
    )


@pytest.mark.parametrize("shift", range(12))
def test_no_break_spaces_are_kept_and_no_line_breaks_at_them(shift: int) -> None:
    held = [
        "10\u202f000\u00a0€",
        "Mr.\u00a0Smith",
        "«\u202foui\u202f»",
        "non\u00a0!",
        "figure\u20077",
        "中文\u00a0かな",
    ]
    board = draw("and so " * shift + " ".join(held * 5))
    shown = [line for cue in assert_keeps_the_rules(board) for line in cue.lines]
    for text in held:
        assert sum(line.count(text) for line in shown) == 5
        assert sum(scene["narration"].count(text) for scene in board["scenes"]) == 5


def test_a_script_with_no_break_spaces_only_is_broken_all_the_same() -> None:
    cues = assert_keeps_the_rules(draw("one\u00a0two\u202fthree " * 2 + "a\u00a0word" * 400 + "\u00a0" * 500))
    assert max(len(line) for cue in cues for line in cue.lines) <= 42


def test_other_spaces_separate_words() -> None:
    board = draw("one\u2003two\u3000three\u2009four\u2028five\u205fsix")
    assert board["word_count"] == 6
    assert [line for cue in read_webvtt(board["captions"]["webvtt"]) for line in cue.lines] == [
        "one two three four five six"
    ]
