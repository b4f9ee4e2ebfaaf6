"""`outrider doctor`: what is wrong with an installation, and what to do about it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.cli.output import AsJson, as_json, cell, echo

if TYPE_CHECKING:
    from engine.invariants import Report
    from ops.cli.verdict import Verdict


def doctor(
    invariants: Annotated[
        bool, typer.Option("--invariants", help="Check every stored job against the engine's invariants too.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Check configuration, keys, pipelines, topics, database, schema and clocks, and whether relays and workers live
    and jobs move; each failure comes with its mend.

    Exit code 1 when something is wrong.
    """
    from engine.process import FAILED

    verdicts, report = asyncio.run(_examined(invariants))
    if json:
        as_json(_document(verdicts, report))
    else:
        for verdict in verdicts:
            _print(verdict)
        if report:
            _print_report(report)
    if not all(verdict.good for verdict in verdicts) or (report and report.findings):
        raise typer.Exit(FAILED)


async def _examined(invariants: bool) -> tuple[list[Verdict], Report | None]:
    from engine import pipeline
    from engine.invariants import report
    from engine.settings import load
    from ops.cli.context import database
    from ops.cli.diagnosis import examine

    verdicts = [verdict async for verdict in examine()]
    # The invariants need a schema, and the presets' own limits: without them there is nothing to judge by.
    needed = {"configuration", "pipelines", "database", "schema"}
    if not invariants or needed - {verdict.check for verdict in verdicts if verdict.good}:
        return verdicts, None
    settings = load()
    limits = {preset: each.max_attempts for preset, each in pipeline.load(settings.pipelines).items()}
    async with database(settings) as conn:
        return verdicts, await report(conn, limits)


def _print(verdict: Verdict) -> None:
    echo(f"{'ok  ' if verdict.good else 'FAIL'}  {verdict.check}: {cell(verdict.found)}")
    if verdict.mend:
        echo(f"      mend: {cell(verdict.mend)}")


def _print_report(report: Report) -> None:
    from engine.invariants import INVARIANTS

    echo(f"{report.jobs} jobs checked")
    broken = {finding.invariant.name: finding for finding in report.findings}
    for invariant in INVARIANTS:
        finding = broken.get(invariant.name)
        echo(f"{'FAIL' if finding else 'ok  '}  {invariant.name}: {invariant.states}")
        if finding:
            for job_id, detail in finding.offenders:
                echo(f"      {job_id}: {detail}")
            echo(f"      {finding.jobs} jobs in all")


def _document(verdicts: list[Verdict], report: Report | None) -> dict[str, Any]:
    from dataclasses import asdict

    from engine.invariants import INVARIANTS

    document: dict[str, Any] = {"checks": [asdict(verdict) for verdict in verdicts], "invariants": None}
    if report:
        broken = {finding.invariant.name: finding for finding in report.findings}
        document["invariants"] = {
            "jobs": report.jobs,
            "checks": [
                {
                    "invariant": each.name,
                    "states": each.states,
                    "offending_jobs": broken[each.name].jobs if each.name in broken else 0,
                    "offenders": [
                        {"job_id": job_id, "detail": detail}
                        for job_id, detail in (broken[each.name].offenders if each.name in broken else ())
                    ],
                }
                for each in INVARIANTS
            ],
        }
    return document
