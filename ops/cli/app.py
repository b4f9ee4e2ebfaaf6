"""Every command under its name. Commands import heavy modules inside their functions, so that `--help` is fast."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from ops.cli.commands import (
    dead_letters,
    healthcheck,
    jobs,
    migrate,
    outbox,
    processes,
    provision,
    submit,
    token,
    workers,
)
from ops.cli.doctor.command import doctor
from ops.cli.output import replace_unencodable
from ops.cli.up.command import up

app = typer.Typer(
    help="Outrider: a job engine on PostgreSQL. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 unhealthy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command("up")(up)
for process in (processes.web, processes.relay, processes.worker):
    app.command(process.__name__)(process)
app.add_typer(migrate.app, name="migrate")
app.command("provision")(provision.provision)
app.command("submit")(submit.submit)
app.add_typer(jobs.app, name="jobs")
app.command("workers")(workers.workers)
app.add_typer(outbox.app, name="outbox")
app.add_typer(dead_letters.app, name="dead-letters")
app.command("explain")(jobs.explain)
app.command("healthcheck")(healthcheck.healthcheck)
app.command("token")(token.token)
app.command("doctor")(doctor)


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments (of the process, by default) name, and exit with its code."""
    # Authors' pipelines are in the current directory. It comes last, so that no module there can replace ours.
    sys.path.append(str(Path.cwd()))
    replace_unencodable()
    try:
        app(arguments, prog_name="outrider")
    except Exception as error:
        from engine.errors import ConfigurationError, OutriderError
        from engine.process.run import FAILED, USAGE

        if not isinstance(error, OutriderError):
            raise
        problems = error.problems if isinstance(error, ConfigurationError) else (str(error),)
        for problem in problems:
            print(f"outrider: {problem}", file=sys.stderr)
        sys.exit(USAGE if isinstance(error, ConfigurationError) else FAILED)
