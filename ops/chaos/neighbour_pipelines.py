"""Pipelines that do in the worker's own process what authors' code does: children, pools, threads and an ORM."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import django
from django.conf import settings
from django.db import close_old_connections, models
from psycopg.conninfo import conninfo_to_dict

from engine import Job, Pipeline, Run, pipeline

LONG_SECONDS: Final = 20.0
"""What a first attempt takes that is still running when its worker has to end."""

_url = conninfo_to_dict(os.environ.get("OUTRIDER_DATABASE_URL", ""))
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "CONN_MAX_AGE": 60,
            **{name.upper(): _url.get(name) or "" for name in ("host", "port", "user", "password")},
            "NAME": _url.get("dbname") or "",
        }
    },
    USE_TZ=True,
)
django.setup()


class Entry(models.Model):  # type: ignore[misc]  # Django has no types
    content = models.TextField()

    class Meta:
        app_label = "chaos"
        db_table = "chaos_entry"


@pipeline("process", backoff=0, runs="thread")
def process(_job: Job, _run: Run) -> Any:
    """Starts a child, and ends it by SIGTERM."""
    child = multiprocessing.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join()
    if child.exitcode != -15:
        raise ValueError(child.exitcode)


@pipeline("pool", backoff=0, runs="thread")
def pool(_job: Job, _run: Run) -> Any:
    """The end of the block sends SIGTERM to the pool's processes."""
    with multiprocessing.Pool(2) as workers:
        return workers.map(abs, range(4))


@pipeline("threads", backoff=0, runs="thread")
def threads(_job: Job, _run: Run) -> Any:
    with ThreadPoolExecutor(4) as executor:
        return list(executor.map(abs, range(8)))


@pipeline("command", backoff=0, runs="thread")
def command(_job: Job, _run: Run) -> Any:
    subprocess.run(["/bin/sleep", "0.01"], check=True)


@pipeline("orm", backoff=0, after_attempt=close_old_connections, runs="thread")
def orm(job: Job, _run: Run) -> Any:
    Entry.objects.create(content=job.content)
    return Entry.objects.filter(content=job.content).count() > 0


@pipeline("long_pool", backoff=0, runs="thread")
def long_pool(_job: Job, run: Run) -> Any:
    """Does not end before its worker does, and then keeps children: the next attempt is quick."""
    with multiprocessing.Pool(2) as workers:
        workers.map(time.sleep, [LONG_SECONDS if run.attempt == 1 else 0.0] * 2)


@pipeline("long_threads", backoff=0, runs="thread")
def long_threads(_job: Job, run: Run) -> Any:
    """As `long_pool`, with threads that the interpreter would wait for."""
    with ThreadPoolExecutor(2) as executor:
        list(executor.map(time.sleep, [LONG_SECONDS if run.attempt == 1 else 0.0] * 2))


pipelines: list[Pipeline] = [process, pool, threads, command, orm, long_pool, long_threads]
