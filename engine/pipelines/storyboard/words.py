# ruff: noqa: RUF001 - look-alike punctuation is what this file is about
"""Text as words: a line never breaks inside a word, and each word has a width and a time to say it.

White space separates words, as `wc -w` counts. `unspaced` handles scripts written without spaces, `abbreviations` the
full stops that end no sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple
from unicodedata import east_asian_width

from engine.pipelines.storyboard import unspaced
from engine.pipelines.storyboard.abbreviations import ORDINAL, Abbreviations, abbreviations

BEATS_PER_WORD = 4
"""Time is counted in quarters of a word, so that the sums stay whole."""

KEEP, NONE, CLAUSE, SENTENCE, PARAGRAPH = -5.0, 0.0, 0.5, 1.0, 1.5
"""How well text breaks after a word. KEEP holds the word to the next one, unless nothing else fits."""


class Word(NamedTuple):
    """`space`: the one before the word, if any; `columns`: the width; `beats`: the time; `stop`: KEEP..PARAGRAPH."""

    text: str
    space: str
    columns: int
    beats: int
    stop: float


# Control characters, soft hyphens, byte order marks, zero-width spaces (except between words), and characters that open
# a direction, which a line break would leave open. Joiners and direction marks stay: Persian and emoji are spelt with
# them.
UNSPOKEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u2060-\u2064\u202a-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb]"
    f"|[\ud800-\udfff]|(?<![{unspaced.SOUTH}])\u200b"
)
SENTENCE_ENDS = ".!?…。．！？।॥؟۔։።᙮។៕"
CLAUSE_ENDS = ",;:—–、，；：،؛፣"
CLOSERS = "\"'”’»›)]}）」』】》〉"
# Spaces at which UAX #14 (class GL) lets no line break.
NO_BREAK = "\u00a0\u2007\u202f"
_BREAK = re.compile(rf"[^\S{NO_BREAK}]+")
_NO_BREAK = re.compile(f"([{NO_BREAK}])[{NO_BREAK}]*")
# Punctuation that stands alone, as in French, belongs to the word before, and an opening quote to the word after.
TRAILING = frozenset({"!", "?", ":", ";", "»", "›", "%", "…", "...", "-", "--", "–", "—"})
LEADING = frozenset({"«", "‹", "„", "“", "¿", "¡", "("})


def clean(content: str) -> str:
    """The content without characters that are neither seen nor spoken. Lines end with a line feed."""
    return UNSPOKEN.sub("", content).replace("\r\n", "\n").replace("\r", "\n")


def split(text: str, language: str = "") -> list[Word]:
    """The words of one paragraph, in order. `language`: ISO 639-1, empty if unknown."""
    tokens = [token for token in (token.strip(NO_BREAK) for token in _BREAK.split(text)) if token]
    known = abbreviations(language)
    words: list[Word] = []
    for token, following in pairwise([*tokens, ""]):
        if token in TRAILING and words:
            words[-1] = words[-1]._replace(stop=KEEP)
        # Every other piece is a space.
        pieces = ["", " ", *_NO_BREAK.split(token)]
        for space, piece, after in zip(pieces[1::2], pieces[2::2], [*pieces[4::2], following], strict=True):
            if space != " ":
                words[-1] = words[-1]._replace(stop=KEEP)
            opens = not words or words[-1].stop >= SENTENCE
            words += _words(piece, space, after, known)
            if opens and ORDINAL.fullmatch(piece):
                words[-1] = words[-1]._replace(stop=KEEP)
    if words:
        words[-1] = words[-1]._replace(stop=PARAGRAPH)
    return words


def join(words: Iterable[Word]) -> str:
    """The words as they were written, with single spaces."""
    return "".join(word.space + word.text for word in words).lstrip()


def beats(words: Iterable[Word]) -> int:
    return sum(word.beats for word in words)


def columns(text: str) -> int:
    """The width of a text. Wide characters take two columns, all others one, combining marks included.

    The width is never less than the number of characters, which simpler players count. A SubRip file may have to show
    brackets as full-width ones.
    """
    narrow = len(text) + sum(map(text.count, "<>{}"))
    if text.isascii():
        return narrow
    return narrow + sum(width in "WF" for width in map(east_asian_width, text))


def _words(text: str, space: str, following: str, known: Abbreviations) -> list[Word]:
    if text.isascii() or not unspaced.LETTER.search(text):
        return [Word(text, space, columns(text), BEATS_PER_WORD, _stop(text, following, known))]
    phrases = unspaced.phrases(text)
    words = [Word(phrase, "", columns(phrase), time, _stop(phrase, "", known)) for phrase, time in phrases]
    words[0] = words[0]._replace(space=space)
    # These scripts put a space where others put a comma or a full stop.
    words[-1] = words[-1]._replace(stop=max(words[-1].stop, CLAUSE))
    return words


def _stop(token: str, following: str, known: Abbreviations) -> float:
    bare = token.rstrip(CLOSERS) or token
    if token in LEADING:
        return KEEP
    if bare.endswith(".") and following:
        return max(_full_stop(bare, following, known), KEEP if bare == token else NONE)
    if bare[-1] in SENTENCE_ENDS:
        return SENTENCE
    return CLAUSE if bare[-1] in CLAUSE_ENDS else NONE


def _full_stop(word: str, following: str, known: Abbreviations) -> float:
    if known.holds(word, following):
        return KEEP
    if not known.ends_sentence(word, following):
        return NONE
    return CLAUSE if following[0].islower() else SENTENCE
