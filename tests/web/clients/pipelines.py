"""Presets that generators could confuse: names that differ in punctuation alone, metadata with the same members."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from engine import Job, Metadata, PermanentError, Run, pipeline


class Voice(Metadata):
    name: str
    rate: float = 1.0


class Speech(Metadata):
    """All members of a storyboard's metadata, and others: a client must not take one for the other."""

    format: Literal["plain", "markdown"]
    words_per_minute: int = Field(100, ge=1, le=1000)
    voices: tuple[Voice, ...] = ()
    title: str | None = None


@pipeline("speech.v2", description="Gives back its metadata", metadata=Speech)
def speech(job: Job, _run: Run) -> Any:
    return job.metadata.model_dump()


@pipeline("speech-v2", description="Gives back its content and metadata")
def open_speech(job: Job, _run: Run) -> Any:
    return {"content": job.content, "metadata": job.metadata, "numbers": [1, 2.5, None, {"deep": [True]}]}


@pipeline("3d")
def unlucky(_job: Job, _run: Run) -> Any:
    raise PermanentError("no such luck")


pipelines = [speech, open_speech, unlucky]
