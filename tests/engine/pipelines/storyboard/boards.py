"""What the storyboard tests share: running the pipeline, reading its subtitles back, and the rules they must keep."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from unicodedata import category, east_asian_width

from engine.errors import PermanentError
from engine.ids import uuid7
from engine.model import Job
from engine.pipelines.storyboard import Storyboard, StoryboardMetadata, storyboard

TEXTS = {path.stem: path.read_text() for path in sorted(Path(__file__).with_name("texts").glob("*.txt"))}
UNSPACED = {"chinese", "japanese", "thai"}
MARKDOWN = (Path(__file__).with_name("texts") / "talk.md").read_text()


@dataclass
class Running:
    """A Run that keeps what is reported to it; it is cancelled at the progress message `cancel_at`."""

    cancel_at: str = ""
    attempt: int = 1
    cancelled: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)
    progressed: list[tuple[float, str]] = field(default_factory=list)

    def step(self, _name: str) -> AbstractContextManager[object]:
        return nullcontext()

    def progress(self, fraction: float, message: str = "") -> None:
        self.progressed.append((fraction, message))
        if message == self.cancel_at:
            self.cancelled.set()


@dataclass(frozen=True)
class Shown:
    """A cue as a player reads it."""

    start: int
    end: int
    lines: list[str]


def draw(content: str, run: Running | None = None, **metadata: Any) -> Storyboard:
    job = Job(
        id=uuid7(),
        user_id="somebody",
        preset="storyboard",
        content=content,
        metadata=StoryboardMetadata.model_validate(metadata),
        priority=2,
        created_at=datetime.now(UTC),
        traceparent=None,
    )
    board: Storyboard = storyboard.function(job, run or Running())
    return board


def draw_if_any(content: str, **metadata: Any) -> Storyboard | None:
    """None where the script has nothing to narrate."""
    try:
        return draw(content, **metadata)
    except PermanentError as error:
        if "no words" in str(error):
            return None
        raise


# What a file holds in place of mark-up: look-alikes, and joiners that are not seen.
AS_MEANT = str.maketrans("\uff1c\uff1e\uff5b\uff5d", "<>{}", "\u2060")


def as_meant(cues: list[Shown]) -> list[Shown]:
    return [Shown(cue.start, cue.end, [line.translate(AS_MEANT) for line in cue.lines]) for cue in cues]


def read_webvtt(text: str) -> list[Shown]:
    header, *blocks = text.split("\n\n")
    assert header == "WEBVTT"
    return [_cue(block.splitlines(), ".", html.unescape) for block in blocks]


def read_srt(text: str) -> list[Shown]:
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert [block[0] for block in blocks] == [str(number) for number in range(1, len(blocks) + 1)]
    return [_cue(block[1:], ",", str) for block in blocks]


def _cue(block: list[str], mark: str, unescape: Any) -> Shown:
    clock = rf"(\d\d+):([0-5]\d):([0-5]\d){re.escape(mark)}(\d{{3}})"
    timing = re.fullmatch(f"{clock} --> {clock}", block[0])
    assert timing, block[0]
    start, end = (
        ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(milliseconds)
        for hours, minutes, seconds, milliseconds in (timing.groups()[:4], timing.groups()[4:])
    )
    return Shown(start, end, [unescape(line) for line in block[1:]])


def bare(text: str) -> str:
    """What is seen of a text: no white space, no control or format characters."""
    return "".join(c for c in text if not c.isspace() and category(c) not in {"Cc", "Cf", "Cs"})


def assert_keeps_the_rules(board: Storyboard) -> list[Shown]:
    """The rules of every storyboard, whatever the script."""
    cues = read_webvtt(board["captions"]["webvtt"])
    assert as_meant(cues) == as_meant(read_srt(board["captions"]["srt"]))
    for cue in cues:
        assert 1 <= len(cue.lines) <= 2
        assert 1000 <= cue.end - cue.start <= 7000
        for line in cue.lines:
            assert line == line.strip()
            assert line
            too_wide = len(line) + sum(east_asian_width(c) in "WF" for c in line) > 42
            assert not too_wide or " " not in line, line
    assert all(one.end == two.start for one, two in pairwise(cues))

    scenes = board["scenes"]
    assert scenes[0]["start"] == cues[0].start == 0
    assert scenes[-1]["end"] == board["duration_seconds"] == cues[-1].end / 1000
    assert all(one["end"] == two["start"] for one, two in pairwise(scenes))
    rest = iter(cues)
    for harness in scenes:
        assert harness["title"].strip()
        assert _said_until(harness["end"], rest) == "".join(harness["narration"].split())
    return cues


def _said_until(seconds: float, rest: Iterator[Shown]) -> str:
    """What the cues up to the one that ends at that very time say, without spaces."""
    said = ""
    for cue in rest:
        said += "".join("".join(cue.lines).split()).replace("\u2060", "")
        if cue.end / 1000 >= seconds:
            assert cue.end / 1000 == seconds
            break
    return said
