"""Cues as files: WebVTT and SubRip.

WebVTT has a standard with escapes. SubRip has neither, and its readers drop what each of them takes for mark-up or for
a timing: FFmpeg (libavformat/srtdec.c, libavcodec/htmlsubtitles.c), players that draw with libass, VLC
(modules/codec/subsdec.c), pysubs2 and webvtt-py. The rules below are the union of theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from engine.pipelines.storyboard.captions import Cue

JOINER = "\N{WORD JOINER}"
"""Is invisible, has no width and lets no line break. FFmpeg separates text from mark-up with it, too."""

# webvtt-py drops whatever stands between angle brackets on a line, libass and pysubs2 between braces in a cue. No
# character inside prevents that, so the pair is written with its full-width forms, which NFKC turns back.
_WIDE_ANGLES = str.maketrans("<>", "\uff1c\uff1e")
_WIDE_BRACES = str.maketrans("{}", "\uff5b\uff5d")

# Elsewhere a joiner is enough. It stands after a `<` that begins a tag, also one that a line break cuts or nothing
# closes; after a `{` that begins an override (a line break is \N to FFmpeg); and in an arrow.
_BEGINS_MARK_UP = re.compile(r"<(?=[ /]*[0-9A-Za-z_])|{(?=[\\\n])|--(?=>)")
# FFmpeg breaks a line at \N and \n and writes a space for \h, in WebVTT too. libass takes the backslash from \{.
_BACKSLASH = re.compile(r"\\(?=[HNhn{}])")
_TIME = re.compile(r"\d:\d{1,2}:\d{1,2}(?=[.,]\d)")
_LAST_NUMBER = re.compile(r"(?<=\n)\d+(?=\n\Z)")


def to_webvtt(cues: Iterable[Cue]) -> str:
    """WebVTT (W3C). `&`, `<` and `>` are escaped, so that no text is read as mark-up or as an arrow."""
    blocks = (f"{_times(cue, '.')}\n{escape(_joined(cue.text, _BACKSLASH), quote=False)}\n" for cue in cues)
    return "\n".join(("WEBVTT\n", *blocks))


def to_srt(cues: Iterable[Cue]) -> str:
    """SubRip: numbered, with decimal commas. Text that a reader would drop is changed as little as keeps it shown."""
    blocks = (f"{at}\n{_times(cue, ',')}\n{shown_as_text(cue.text)}\n" for at, cue in enumerate(cues, 1))
    # pysubs2 takes a number on the last line for the number of a next cue.
    return _joined("\n".join(blocks), _LAST_NUMBER)


def shown_as_text(text: str) -> str:
    """The text of a SubRip cue, such that each reader shows every word of the text."""
    if _holds_pair(text, "{", "}"):
        text = text.translate(_WIDE_BRACES)
    text = "\n".join(map(_shown_line, text.split("\n")))
    return _joined(_joined(text, _BEGINS_MARK_UP), _BACKSLASH)


def _shown_line(line: str) -> str:
    if _holds_pair(line, "<", ">"):
        line = line.translate(_WIDE_ANGLES)
    # pysubs2 takes any line with two times for a timing.
    return _joined(line, _TIME) if len(_TIME.findall(line)) > 1 else line


def _holds_pair(text: str, opening: str, closing: str) -> bool:
    return 0 <= text.find(opening) < text.rfind(closing)


def _joined(text: str, before: re.Pattern[str]) -> str:
    """The text with a joiner after each match of `before`."""
    return before.sub(rf"\g<0>{JOINER}", text)


def _times(cue: Cue, mark: str) -> str:
    return f"{_time(cue.start, mark)} --> {_time(cue.end, mark)}"


def _time(milliseconds: int, mark: str) -> str:
    seconds, thousandths = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{mark}{thousandths:03}"
