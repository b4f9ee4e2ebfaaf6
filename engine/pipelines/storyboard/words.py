# ruff: noqa: RUF001 - look-alike punctuation is what this file is about
"""Text as words: a line never breaks inside a word, and each word has a width and a time to say it.

White space separates words, as `wc -w` counts. `unspaced` handles scripts written without spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple
from unicodedata import east_asian_width

from engine.pipelines.storyboard import unspaced

BEATS_PER_WORD = 4
"""Time is counted in quarters of a word, so that the sums stay whole."""

KEEP, NONE, CLAUSE, SENTENCE, PARAGRAPH = -1.0, 0.0, 0.5, 1.0, 1.5
"""How well text breaks after a word. KEEP holds the word to the next one, unless nothing else fits."""


class Word(NamedTuple):
    """`space`: whether one stands before the word; `columns`: the width; `beats`: the time; `stop`: KEEP..PARAGRAPH."""

    text: str
    space: bool
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
ABBREVIATION = re.compile(
    r"\W*+(?:\d+|[^\W\d]|(?:[^\W\d]\.)+[^\W\d]|Mr|Mrs|Ms|Mme|Dr|Prof|St|Sr|Jr|Hr|Fr|Sra|vs|No|Nr|ca|bzw)\."
)
# Punctuation that stands alone, as in French, belongs to the word before, and an opening quote to the word after.
TRAILING = frozenset({"!", "?", ":", ";", "»", "›", "%", "…", "...", "-", "--", "–", "—"})
LEADING = frozenset({"«", "‹", "„", "“", "¿", "¡", "("})


def clean(content: str) -> str:
    """The content without characters that are neither seen nor spoken. Lines end with a line feed."""
    return UNSPOKEN.sub("", content).replace("\r\n", "\n").replace("\r", "\n")


def split(text: str) -> list[Word]:
    """The words of one paragraph, in order."""
    words: list[Word] = []
    for token in text.split():
        if token in TRAILING and words:
            words[-1] = words[-1]._replace(stop=KEEP)
        if token.isascii() or not unspaced.LETTER.search(token):
            words.append(Word(token, True, columns(token), BEATS_PER_WORD, _stop(token)))
        else:
            words += _unspaced(token)
    if words:
        words[-1] = words[-1]._replace(stop=PARAGRAPH)
    return words


def join(words: Iterable[Word]) -> str:
    """The words as they were written, with single spaces."""
    return "".join(f" {word.text}" if word.space else word.text for word in words).removeprefix(" ")


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


def _unspaced(token: str) -> list[Word]:
    phrases = unspaced.phrases(token)
    words = [Word(text, False, columns(text), time, _stop(text)) for text, time in phrases]
    words[0] = words[0]._replace(space=True)
    # These scripts put a space where others put a comma or a full stop.
    words[-1] = words[-1]._replace(stop=max(words[-1].stop, CLAUSE))
    return words


def _stop(token: str) -> float:
    bare = token.rstrip(CLOSERS) or token
    if token in LEADING:
        return KEEP
    if bare[-1] in SENTENCE_ENDS:
        return NONE if ABBREVIATION.fullmatch(bare) else SENTENCE
    return CLAUSE if bare[-1] in CLAUSE_ENDS else NONE
