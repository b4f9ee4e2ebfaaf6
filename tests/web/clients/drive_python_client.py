"""Uses the package `made_by_python_client`, which openapi-python-client made, against the server of the environment."""

from __future__ import annotations

import os
from typing import TypeVar
from uuid import uuid4

import httpx
from made_by_python_client import AuthenticatedClient, models
from made_by_python_client.api.health import ready
from made_by_python_client.api.jobs import (
    batch,
    cancel,
    events,
    explained,
    history,
    job,
    list_jobs,
    retry,
    run,
)
from made_by_python_client.api.presets import presets

T = TypeVar("T")

client = AuthenticatedClient(
    base_url=os.environ["SERVER"],
    token=os.environ["TOKEN"],
    timeout=httpx.Timeout(40),
    raise_on_unexpected_status=True,
)


def a(model: type[T], answer: object) -> T:
    """The answer, which must be of that type."""
    assert isinstance(answer, model), answer
    return answer


def ended(
    asked: models.StoryboardJob | models.SpeechV2Job | models.SpeechV2Job2 | models.Preset3DJob,
) -> models.JobObject:
    accepted = a(models.Accepted, run.sync(client=client, body=asked))
    return a(models.JobObject, job.sync(accepted.job_id, client=client, prefer="wait=30"))


# Typed metadata, and every optional member unset or null.
pace = models.StoryboardJobMetadata(words_per_minute=300)
for asked in (
    models.StoryboardJob(content="One. Two.", preset="storyboard", metadata=pace),
    models.StoryboardJob(content="One. Two.", preset="storyboard"),
    models.StoryboardJob(
        content="One. Two.",
        preset="storyboard",
        metadata=None,
        priority=None,
        run_at=None,
        delay_seconds=None,
        max_attempts=None,
        timeout_seconds=None,
    ),
    models.StoryboardJob(content="One. Two.", preset="storyboard", run_at=None, delay_seconds=0.01),
):
    done = ended(asked)
    assert (done.status, done.preset, done.error, done.priority) == ("completed", "storyboard", None, 2), done
    assert done.result["word_count"] == 2, done.result

# Another preset's metadata stays that preset's, in a batch as well as read from JSON.
as_json = {
    "content": "hello",
    "preset": "speech.v2",
    "metadata": {"format": "markdown", "words_per_minute": 20, "voices": [{"name": "Ada"}]},
}
speech = models.Batch.from_dict({"jobs": [as_json]}).jobs[0]
assert isinstance(speech, models.SpeechV2Job), speech
assert speech.to_dict() == as_json, speech.to_dict()
done = ended(speech)
assert done.result == {
    "format": "markdown",
    "words_per_minute": 20,
    "voices": [{"name": "Ada", "rate": 1.0}],
    "title": None,
}, done.result
assert done.metadata.to_dict() == as_json["metadata"], done.metadata

free = models.SpeechV2Job2.from_dict({"content": "x", "preset": "speech-v2", "metadata": {"any": [1, None]}})
done = ended(free)
assert done.result == {
    "content": "x",
    "metadata": {"any": [1, None]},
    "numbers": [1, 2.5, None, {"deep": [True]}],
}, done.result

failed = ended(models.Preset3DJob(content="x", preset="3d"))
assert failed.status is models.Status.FAILED
assert (failed.error.type_, failed.error.message, failed.result) == ("PermanentError", "no such luck", None)
assert a(models.Standing, retry.sync(failed.job_id, client=client)).status == "pending"

# Later: cancelled, once for all.
many = a(models.AcceptedBatch, batch.sync(client=client, body=models.Batch(jobs=[speech, free])))
assert len(many.job_ids) == 2, many
later = run.sync(client=client, body=models.SpeechV2Job2(content="x", preset="speech-v2", delay_seconds=3600))
for _ in range(2):
    stopped = a(models.Standing, cancel.sync(later.job_id, client=client))
    assert stopped.status is models.Status.CANCELLED
page = list_jobs.sync(client=client, status=models.Status.CANCELLED, limit=1)
assert [each.job_id for each in page.jobs] == [later.job_id], page
page = list_jobs.sync(client=client, limit=2)
assert len(page.jobs) == 2, page
more = list_jobs.sync(client=client, limit=2, cursor=page.next_cursor)
assert not {each.job_id for each in more.jobs} & {each.job_id for each in page.jobs}

trail = history.sync(later.job_id, client=client)
assert [each.to_status for each in trail.history] == ["pending", "cancelled"], trail
assert "cancelled" in explained.sync(later.job_id, client=client).summary
text = events.sync(later.job_id, client=client)
assert text.count("event: status") == 2, text
assert events.sync_detailed(later.job_id, client=client, last_event_id="1").status_code == 204
read = job.sync_detailed(later.job_id, client=client)
unchanged = job.sync_detailed(later.job_id, client=client, if_none_match=read.headers["ETag"])
assert (unchanged.status_code, unchanged.parsed) == (304, None)
assert {each.preset for each in presets.sync(client=client).presets} == {
    "storyboard",
    "speech.v2",
    "speech-v2",
    "3d",
}
assert ready.sync(client=client).status == "ok"

# Refusals are problems.
bad = models.SpeechV2Job2(content="", preset="speech-v2")
wrong = a(models.ProblemDetails, run.sync(client=client, body=bad))
assert (wrong.status, [each.pointer for each in wrong.errors]) == (422, ["/content"]), wrong
assert a(models.ProblemDetails, job.sync(uuid4(), client=client)).status == 404
assert a(models.ProblemDetails, cancel.sync(done.job_id, client=client)).status == 409
stranger = AuthenticatedClient(base_url=os.environ["SERVER"], token="none")
assert list_jobs.sync(client=stranger).title == "Unauthorized"
