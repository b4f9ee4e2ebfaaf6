"""The preset `storyboard`: turns a script into timed scenes and subtitles.

`script` reads the content into scenes of words, `words` measures the words, `captions` cuts and times the cues,
`formats` writes them.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from pydantic import BeforeValidator, Field

from engine import Job, Metadata, PermanentError, Run, pipeline
from engine.pipelines.storyboard.captions import Cue, Subtitler
from engine.pipelines.storyboard.formats import to_srt, to_webvtt
from engine.pipelines.storyboard.script import Scene, read
from engine.pipelines.storyboard.words import BEATS_PER_WORD
from engine.text import whole

MAX_SCENES = 5_000
"""Keeps the output within 4 MiB: a heading and a word take 6 bytes of script, but 150 bytes of output."""

MAX_LISTED = 20_000
"""Paragraphs. Those of longer scripts run on in a line, because a cue for each would not fit in the output."""


class StoryboardMetadata(Metadata):
    format: Literal["plain", "markdown"] = Field(
        "plain",
        description="plain: every word is narrated; markdown: headings title scenes, mark-up is dropped",
    )
    words_per_minute: Annotated[int, BeforeValidator(whole)] = Field(
        150, ge=80, le=300, description="pace of the narration"
    )


class SceneView(TypedDict):
    """One scene; `start` and `end` are seconds from the storyboard's start."""

    title: str
    narration: str
    start: float
    end: float


class Captions(TypedDict):
    webvtt: str
    srt: str


class Storyboard(TypedDict):
    scenes: list[SceneView]
    captions: Captions
    duration_seconds: float
    word_count: int
    words_per_minute: int


@pipeline(
    "storyboard",
    description="Turns a script into scenes with spoken durations, and captions as WebVTT and SRT",
    metadata=StoryboardMetadata,
    timeout=60,
    max_attempts=3,
    # It is quick, and ends when it is told to. A worker that runs no other plain function needs no processes for it.
    runs="thread",
)
def storyboard(job: Job, run: Run) -> Storyboard | None:
    """Lays out the script scene by scene. Returns None if the run is cancelled, because its result is dropped."""
    asked: StoryboardMetadata = job.metadata
    run.progress(0, "reading the script")
    with run.step("script"):
        scenes = _scenes_of(job.content, asked)
    paragraphs = sum(len(scene.paragraphs) for scene in scenes)
    subtitler = Subtitler(asked.words_per_minute, apart=paragraphs <= MAX_LISTED)
    views: list[SceneView] = []
    cues: list[Cue] = []
    with run.step("captions"):
        for number, scene in enumerate(scenes, 1):
            if run.cancelled.is_set():
                return None
            shown = list(subtitler.cues(scene.words))
            views.append(
                {
                    "title": scene.title,
                    "narration": scene.narration,
                    "start": shown[0].start / 1000,
                    "end": shown[-1].end / 1000,
                }
            )
            cues += shown
            run.progress(number / len(scenes), f"scene {number} of {len(scenes)}")
    return {
        "scenes": views,
        "captions": {"webvtt": to_webvtt(cues), "srt": to_srt(cues)},
        "duration_seconds": cues[-1].end / 1000,
        "word_count": -(-sum(scene.beats for scene in scenes) // BEATS_PER_WORD),
        "words_per_minute": asked.words_per_minute,
    }


def _scenes_of(content: str, asked: StoryboardMetadata) -> list[Scene]:
    scenes = list(read(content, asked.format, asked.words_per_minute))
    if not scenes:
        raise PermanentError("the script has no words to narrate")
    if len(scenes) > MAX_SCENES:
        raise PermanentError(f"the script has {len(scenes)} scenes; a storyboard holds at most {MAX_SCENES}")
    return scenes
