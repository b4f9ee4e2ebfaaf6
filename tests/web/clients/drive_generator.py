"""Uses the package `made_by_generator`, which openapi-generator made, against the server of the environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import made_by_generator as made

configuration = made.Configuration(host=os.environ["SERVER"], access_token=os.environ["TOKEN"])
api = made.JobsApi(made.ApiClient(configuration))


def ended(asked: Any) -> made.JobObject:
    accepted = api.run(made.JobToRun(asked))
    return api.job(accepted.job_id, prefer="wait=30")


def given(sent: Any) -> Any:
    """What is sent, but null, which this client sends for absent."""
    return (
        {name: given(value) for name, value in sent.items() if value is not None}
        if isinstance(sent, dict)
        else sent
    )


def refusal(call: Callable[[], object]) -> made.ProblemDetails:
    try:
        call()
    except made.ApiException as error:
        problem = error.data
    assert isinstance(problem, made.ProblemDetails), problem
    return problem


# Typed metadata, and every optional member unset or null.
for asked in (
    made.StoryboardJob(
        content="One. Two.", preset="storyboard", metadata=made.StoryboardJobMetadata(words_per_minute=300)
    ),
    made.StoryboardJob(content="One. Two.", preset="storyboard"),
    made.StoryboardJob(
        content="One. Two.",
        preset="storyboard",
        metadata=None,
        priority=None,
        run_at=None,
        delay_seconds=None,
        max_attempts=None,
        timeout_seconds=None,
    ),
    made.StoryboardJob(content="One. Two.", preset="storyboard", run_at=None, delay_seconds=0.01),
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
speech = made.JobToRun.from_dict(as_json)
assert isinstance(speech.actual_instance, made.SpeechV2Job), speech
assert isinstance(speech.actual_instance.metadata, made.SpeechV2JobMetadata), speech
assert given(speech.to_dict()) == as_json, speech
done = ended(speech.actual_instance)
assert done.result == {
    "format": "markdown",
    "words_per_minute": 20,
    "voices": [{"name": "Ada", "rate": 1.0}],
    "title": None,
}, done.result
assert given(done.metadata) == as_json["metadata"], done.metadata
for preset in ("unknown", "storyboard"):
    try:
        made.JobToRun.from_dict(as_json | {"preset": preset, "metadata": {"format": "pdf"}})
    except ValueError:
        pass
    else:
        raise AssertionError(preset)

free = made.SpeechV2Job2(content="x", preset="speech-v2", metadata={"any": [1, None]})
done = ended(free)
assert done.result == {
    "content": "x",
    "metadata": {"any": [1, None]},
    "numbers": [1, 2.5, None, {"deep": [True]}],
}, done.result

failed = ended(made.Preset3dJob(content="x", preset="3d"))
assert failed.status is made.Status.FAILED
assert (failed.error.type, failed.error.message, failed.result) == ("PermanentError", "no such luck", None)
assert api.retry(failed.job_id).status == "pending"

# Later: cancelled, once for all.
many = api.batch(made.Batch(jobs=[speech, made.JobToRun(free)]), idempotency_key=str(uuid4()))
assert len(many.job_ids) == 2, many
later = api.run(made.JobToRun(made.SpeechV2Job2(content="x", preset="speech-v2", delay_seconds=3600)))
for _ in range(2):
    assert api.cancel(later.job_id).status is made.Status.CANCELLED
assert [each.job_id for each in api.list_jobs(status=made.Status.CANCELLED, limit=1).jobs] == [later.job_id]
page = api.list_jobs(limit=2)
assert len(page.jobs) == 2, page
more = api.list_jobs(limit=2, cursor=page.next_cursor)
assert not {each.job_id for each in more.jobs} & {each.job_id for each in page.jobs}

assert [each.to_status for each in api.history(later.job_id).history] == ["pending", "cancelled"]
assert "cancelled" in api.explained(later.job_id).summary
assert str(api.events(later.job_id)).count("event: status") == 2
assert api.events_with_http_info(later.job_id, last_event_id="1").status_code == 204
tag = api.job_with_http_info(later.job_id).headers["ETag"]
try:
    unchanged = api.job_with_http_info(later.job_id, if_none_match=tag).status_code
except made.ApiException as error:
    unchanged = error.status
assert unchanged == 304
presets = made.PresetsApi(api.api_client).presets().presets
assert {each.preset for each in presets} == {"storyboard", "speech.v2", "speech-v2", "3d"}
assert made.HealthApi(api.api_client).ready().status == "ok"

# Refusals are problems.
wrong = made.SpeechV2Job2.model_construct(content="", preset="speech-v2")
[fault] = refusal(lambda: api.run(made.JobToRun(wrong))).errors
assert fault.pointer == "/content", fault
assert refusal(lambda: api.job(uuid4())).status == 404
assert refusal(lambda: api.cancel(done.job_id)).status == 409
stranger = made.JobsApi(made.ApiClient(made.Configuration(host=os.environ["SERVER"], access_token="none")))
assert refusal(stranger.list_jobs).title == "Unauthorized"
