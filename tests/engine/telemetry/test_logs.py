"""Logging tells no secrets, and never fails whoever logs."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID

import orjson
import pytest
import structlog

from engine.settings import load
from engine.telemetry import logs
from ops.waiting import WAIT_SECONDS

JOB = UUID(int=7)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    known = structlog.get_config()
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    structlog.configure(**known)
    structlog.contextvars.clear_contextvars()
    root.handlers = handlers
    root.setLevel(level)


def configured(**settings: Any) -> Any:
    logs.configure(load({}, **({"log_format": "json"} | settings)), "worker")
    structlog.configure(cache_logger_on_first_use=False)
    return structlog.get_logger()


def lines(captured: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in captured.readouterr().err.splitlines()]


def test_an_event_is_one_line_of_json_with_its_role(capfd: pytest.CaptureFixture[str]) -> None:
    configured().info("attempt.ended", job_id=JOB, seconds=0.5)
    [line] = lines(capfd)
    assert (line["event"], line["role"], line["level"]) == ("attempt.ended", "worker", "info")
    assert (line["job_id"], line["seconds"]) == (str(JOB), 0.5)
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize(
    ("event", "hidden"),
    [
        ({"authorization": "Bearer abc"}, "abc"),
        ({"api_key": "abc123"}, "abc123"),
        ({"jwt_secret": "abc123"}, "abc123"),
        ({"error": "connection to postgresql://ann:hunter2@db/x failed"}, "hunter2"),
        ({"error": "refused: Bearer eyJhbGciOi.abc-_"}, "eyJhbGciOi"),
        ({"error": "at postgresql://ann:hunter@2@db/x"}, "hunter"),
        ({"error": "host=db user=ann password=hunter2"}, "hunter2"),
        ({"error": "GET https://db/x?user=ann&token=hunter2&x=y"}, "hunter2"),
        ({"error": "Authorization: Basic aHVudGVyMg=="}, "aHVudGVyMg"),
        ({"error": "occurrences: api-key: sekret123,x"}, "sekret123"),
        ({"error": "it read eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl"}, "eyJzdWIi"),
    ],
)
def test_secrets_are_hidden(capfd: pytest.CaptureFixture[str], event: dict[str, str], hidden: str) -> None:
    configured().warning("something.happened", **event)
    assert hidden not in capfd.readouterr().err


HOSTILE = "from engine.telemetry.redaction import redact; redact(None, '', {'error': ' ' + %r * 500_000})"


@pytest.mark.parametrize(
    "text", ["a://b:", "a://b:c@", "bearer ", "password=", "eyJaaaaaaaa.", "a://bbbbbbbb"]
)
def test_no_text_keeps_the_redaction_busy(text: str) -> None:
    """In a process of its own: a search that does not end would hold this one, and any thread of it."""
    subprocess.run([sys.executable, "-c", HOSTILE % text], check=True, timeout=WAIT_SECONDS)


async def test_lines_of_one_turn_of_the_loop_are_written_at_its_end_and_warnings_and_other_threads_at_once(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def said() -> list[str]:
        return [line["event"] for line in lines(capfd)]

    log = configured()
    log.info("a.said")
    log.info("b.said")
    assert said() == []
    await asyncio.sleep(0)
    assert said() == ["a.said", "b.said"]
    log.info("c.said")
    log.warning("d.said")
    assert said() == ["c.said", "d.said"]
    log.info("e.said")
    thread = threading.Thread(target=log.info, args=["f.said"])
    thread.start()
    thread.join()
    assert said() == ["e.said", "f.said"]


def test_no_line_is_lost_between_threads(capfd: pytest.CaptureFixture[str]) -> None:
    log = configured()

    async def looped() -> None:
        for number in range(2000):
            log.info("x.said", number=number)
            if number % 7 == 0:
                await asyncio.sleep(0)

    def other() -> None:
        for number in range(2000):
            log.info("y.said", number=number)

    threads = [threading.Thread(target=other), threading.Thread(target=lambda: asyncio.run(looped()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [(line["event"], line["number"]) for line in lines(capfd)]
    assert sorted(said) == sorted((event, n) for event in ("x.said", "y.said") for n in range(2000))


def test_the_middle_of_a_long_text_is_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    configured().warning("something.happened", error="begin" + " x" * 100_000 + "end")
    [line] = lines(capfd)
    assert len(line["error"]) < 17_000
    assert line["error"].startswith("begin x")
    assert line["error"].endswith("xend")


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_are_hidden_in_tracebacks_too(capfd: pytest.CaptureFixture[str], form: str) -> None:
    log = configured(log_format=form)
    local = "a local variable"
    try:
        int("postgresql://u:hunter2@host/d refused 'Bearer abc.def'")
    except ValueError:
        log.exception("it.broke")
    said = capfd.readouterr().err
    assert "ValueError" in said
    assert not [secret for secret in ("hunter2", "abc.def", local) if secret in said]


@pytest.mark.parametrize("value", ["\ud800", 2**80, {"\udfff": 1}, object(), float("nan"), b"\xff"])
@pytest.mark.parametrize("form", ["json", "console"])
def test_whatever_is_logged_gives_a_line(capfd: pytest.CaptureFixture[str], value: Any, form: str) -> None:
    configured(log_format=form).info("odd.seen", value=value)
    assert "odd.seen" in capfd.readouterr().err


def test_a_library_s_record_keeps_its_traceback_and_any_level(capfd: pytest.CaptureFixture[str]) -> None:
    configured()
    try:
        print(1 // 0)
    except ZeroDivisionError:
        logging.getLogger("lib").exception("it broke %d times", 3)
    logging.getLogger("lib").log(35, "odd level")
    logging.getLogger("lib").info("too quiet")
    broken, odd = lines(capfd)
    assert (broken["logger"], broken["message"]) == ("lib", "it broke 3 times")
    assert "ZeroDivisionError" in broken["exception"]
    assert odd["message"] == "odd level"


@pytest.mark.parametrize(
    ("level", "shown"),
    [("debug", ["debug", "info", "warning"]), ("info", ["info", "warning"]), ("error", [])],
)
def test_a_pipeline_module_s_package_logs_from_the_configured_level_on(
    capfd: pytest.CaptureFixture[str], level: str, shown: list[str]
) -> None:
    configured(log_level=level, pipelines=("labels.printing",))
    for name in ("labels", "labels.paper"):
        for said in ("debug", "info", "warning"):
            logging.getLogger(name).log(logs.LEVELS[said], said)
    assert [(line["logger"], line["message"]) for line in lines(capfd)] == [
        (name, said) for name in ("labels", "labels.paper") for said in shown
    ]


def test_the_level_is_the_configured_one(capfd: pytest.CaptureFixture[str]) -> None:
    log = configured(log_level="error")
    log.warning("not.shown")
    log.error("is.shown")
    assert [line["event"] for line in lines(capfd)] == ["is.shown"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_reader_that_has_gone_does_not_fail_the_one_who_logs(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stream)
    log = configured(log_format=form)
    for _ in range(3):
        log.info("nobody.reads")
    with suppress(BrokenPipeError):
        stream.close()
