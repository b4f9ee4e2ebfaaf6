# ruff: noqa: RUF001 - look-alike punctuation is what this file is about
"""Scripts written without spaces: where a line may break, and how long the text takes to say.

BudouX finds the phrases of Chinese, Japanese and Thai. Spaces and zero-width spaces separate the phrases of Lao, Khmer,
Burmese and Tibetan. A text longer than a phrase can be may break between any two characters with their marks. Two
characters of Chinese or Japanese count as one word, and so do four letters of the other scripts. At 150 words a minute
that makes 300 characters a minute, as newsreaders in Beijing and Tokyo speak.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from unicodedata import category

import budoux

EAST = (
    "\u3005-\u3007\u3021-\u3029\u3041-\u30ff\u3105-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
)
THAI = "\u0e01-\u0e3a\u0e40-\u0e5b"
SOUTH = f"{THAI}\u0e81-\u0edf\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
LETTER = re.compile(f"[{EAST}{SOUTH}]")

EAST_BEATS, SOUTH_BEATS, WORD_BEATS = 2, 1, 4
PHRASE_CHARACTERS = 16
"""Few phrases are longer. At the slowest pace a phrase of this length is said within a cue's 7 seconds."""

_OPENING = r"(\[{«“‘（［｛「『【〈《〔"
_CLOSING = r",.!?;:)\]}»”’\"'…—~%、。，．！？；：）］｝」』】〉》〕・～"
_RUN = re.compile(
    f"[{_OPENING}]*+[{EAST}]+[{_CLOSING}]*|[{_OPENING}]*+[{SOUTH}]+[{_CLOSING}]*"
    f"|[{_OPENING}]+|[^{EAST}{SOUTH}{_OPENING}]+"
)
_EAST = re.compile(f"[{EAST}]")
_KANA = re.compile("[\u3041-\u30ff\uff66-\uff9f]")
_THAI = re.compile(f"[{THAI}]")

# Vowels written before their consonant, marks that stack the next one under it, and vowels written after it.
_JOINS_NEXT = frozenset("เแโใไເແໂໃໄ\u17d2\u1039")
_JOINS_PREVIOUS = frozenset("\u0e33\u0eb3")
_NEVER_FIRST = frozenset({"Mn", "Mc", "Me", "Pe", "Pf", "Po", "Cf"})
_NEVER_LAST = frozenset({"Ps", "Pi"})


def phrases(token: str) -> Iterator[tuple[str, int]]:
    """The token's phrases with their beats, in order. Only zero-width spaces are dropped."""
    language = "ja" if _KANA.search(token) else "zh"
    for run in filter(None, (run.strip("\u200b") for run in _RUN.findall(token))):
        if _EAST.search(run):
            yield from _timed(_parser(language).parse(run))
        elif _THAI.search(run):
            yield from _timed(_parser("th").parse(run))
        elif LETTER.search(run):
            yield from _timed([run])
        else:
            yield run, WORD_BEATS if any(map(str.isalnum, run)) else 0


@cache
def _parser(language: str) -> budoux.Parser:
    match language:
        case "ja":
            return budoux.load_default_japanese_parser()
        case "th":
            return budoux.load_default_thai_parser()
        case _:
            return budoux.load_default_simplified_chinese_parser()


def _timed(found: Iterable[str]) -> Iterator[tuple[str, int]]:
    for phrase in _joined(found):
        for text in [phrase] if len(phrase) <= PHRASE_CHARACTERS else _joined(phrase):
            yield text, min(sum(map(_beats, text)), PHRASE_CHARACTERS * EAST_BEATS)


def _beats(character: str) -> int:
    if _EAST.match(character):
        return EAST_BEATS
    return SOUTH_BEATS if character.isalnum() else 0


def _joined(parts: Iterable[str]) -> Iterator[str]:
    """The parts, each with the marks and the punctuation that a line break must not separate from the part."""
    held = ""
    for part in parts:
        if held and _breaks(held[-1], part[0]):
            yield held
            held = ""
        held += part
    if held:
        yield held


def _breaks(before: str, after: str) -> bool:
    if before in _JOINS_NEXT or after in _JOINS_PREVIOUS:
        return False
    return category(after) not in _NEVER_FIRST and category(before) not in _NEVER_LAST
