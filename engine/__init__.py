"""The public API: the names that pipelines and applications import. Only the names listed here are stable.

A pipeline is a function `(job: Job, run: Run)` declared with `@pipeline`. The function returns JSON-able data or one
of `Completed`, `Retry`, `Failed` and `Snoozed`, or raises. `Metadata` is the base class of a preset's metadata model.
An application adds jobs in its own transaction: `await enqueue(conn, NewJob(…))`, or several by `enqueue_many`.
"""

from engine.errors import DuplicateJob, InvalidJob, PermanentError
from engine.model import Completed, Failed, Job, NewJob, Retry, Snoozed
from engine.moves.enqueue import enqueue, enqueue_many
from engine.pipeline import Metadata, Pipeline, Run, pipeline

__all__ = [
    "Completed",
    "DuplicateJob",
    "Failed",
    "InvalidJob",
    "Job",
    "Metadata",
    "NewJob",
    "PermanentError",
    "Pipeline",
    "Retry",
    "Run",
    "Snoozed",
    "enqueue",
    "enqueue_many",
    "pipeline",
]
