"""`outrider migrate`: the schema's versions."""

from __future__ import annotations

from typing import Annotated

import typer

from ops.cli.output import AsJson, as_json, complain, echo, table

app = typer.Typer(help="Apply, roll back or show the versions of the database schema.", no_args_is_help=True)


@app.command()
def up(json: AsJson = False) -> None:
    """Apply every pending version."""
    import migrations

    applied = migrations.up(_url())
    if json:
        as_json({"applied": applied})
    else:
        for version in applied:
            echo(f"applied {version}")
        complain("the schema is up to date")


@app.command()
def down(
    count: Annotated[
        int, typer.Option("--count", min=1, help="How many versions to roll back, the latest first.")
    ] = 1,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask. The tables of a version are dropped.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Roll back the latest versions. The rows in their tables are lost."""
    import migrations

    if not yes:
        typer.confirm(
            f"Roll back {count} versions of the schema, and lose the rows in their tables?",
            abort=True,
            err=True,
        )
    gone = migrations.down(_url(), count)
    if json:
        as_json({"rolled_back": gone})
    else:
        for version in gone:
            echo(f"rolled back {version}")
        if len(gone) < count:
            complain(
                "no more versions are applied" if gone else "no version is applied: nothing to roll back"
            )


@app.command()
def status(json: AsJson = False) -> None:
    """Show every version. Exit code 3 unless every version is applied and matches this code."""
    import migrations
    from engine.process.run import UNHEALTHY

    versions = migrations.status(_url())
    if json:
        as_json([{"id": each.id, "state": each.state, "applied_at": each.applied_at} for each in versions])
    else:
        table(
            ["version", "state", "applied at"],
            [(each.id, each.state, each.applied_at) for each in versions],
            empty="no versions",
        )
    if any(each.state != "applied" for each in versions):
        raise typer.Exit(UNHEALTHY)


def _url() -> str:
    from engine.settings import load
    from ops.cli.context import database_url

    return database_url(load())
