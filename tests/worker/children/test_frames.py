"""Whatever pieces the messages of a child arrive in, they are what was sent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from engine.model import Attempt, Failed, Job, JobError
from worker.children.frames import (
    LENGTH,
    MAX_BYTES,
    Begin,
    BrokenFrame,
    Commit,
    Committed,
    Decoder,
    Done,
    Ended,
    Line,
    Ready,
    StepBegan,
    StepEnded,
    encoded,
)

NOON = datetime(2026, 1, 2, 12, 0, 0, 1, tzinfo=UTC)
JOB = Job(UUID(int=7), "ann", "echo", "Grüße", {"copies": 2}, 1, NOON, "00-1-2-01", replayed=True)
ATTEMPT = Attempt(JOB, 3, 1 << 40, 1, 2, None, 60, 5, NOON, NOON, NOON, "no JSON")
MESSAGES: list[Any] = [
    Begin(ATTEMPT, traced=True),
    Begin(ATTEMPT._replace(max_attempts=4, timeout_seconds=None, undecodable=None)),
    Done('{"a":1}', effects=True, spent=None),
    Done("x" * 300_000, effects=False, spent="it has run 1000 attempts"),
    Ended(Failed(JobError("Refused", "no")), None),
    Commit("{}", publish_results=True),
    Committed(None, "ended in its effects"),
    Ready(12, None),
    Line(b"{}\n"),
    StepBegan(2, 1, "render"),
    StepEnded(2, None),
]


@pytest.mark.parametrize("size", [1, 5, 1000, 65_536, 1 << 20])
def test_messages_arrive_as_they_were_sent_in_pieces_of_any_size(size: int) -> None:
    data = b"".join(map(encoded, MESSAGES))
    decoder, arrived = Decoder(), []
    for at in range(0, len(data), size):
        arrived += decoder.feed(data[at : at + size])
    assert arrived == MESSAGES
    assert [type(each) for each in arrived] == [type(each) for each in MESSAGES]


@pytest.mark.parametrize(
    "junk", [LENGTH.pack(MAX_BYTES + 1), LENGTH.pack(5) + b"hello", LENGTH.pack(3) + b"\x80\x04."]
)
def test_bytes_that_are_no_message_are_refused(junk: bytes) -> None:
    with pytest.raises(BrokenFrame):
        Decoder().feed(encoded(Ready(1)) + junk)
