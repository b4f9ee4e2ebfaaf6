"""`outrider doctor`: finds what is wrong with an installation, and how to fix it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.cli.output import AsJson, as_json, cell, echo

if TYPE_CHECKING:
    from engine.queries.invariants import Report
    from ops.cli.doctor.result import CheckResult


def doctor(
    invariants: Annotated[
        bool,
        typer.Option("--invariants", help="Also check every stored job against the engine's invariants."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Check configuration, keys, pipelines, topics, database, schema, clocks, relays, workers and the flow of jobs.

    Each failure comes with a fix. Exit code 3 if a check fails; a warning is no failure.
    """
    from engine.process.run import UNHEALTHY

    results, report = asyncio.run(_examined(invariants))
    if json:
        as_json(_document(results, report))
    else:
        for result in results:
            _print(result)
        if report:
            _print_report(report)
    if not all(result.good for result in results) or (report and report.findings):
        raise typer.Exit(UNHEALTHY)


async def _examined(invariants: bool) -> tuple[list[CheckResult], Report | None]:
    from engine.queries.invariants import report
    from engine.settings import load
    from ops.cli.context import database
    from ops.cli.doctor.config_checks import examine

    results = [result async for result in examine()]
    # The invariants need the schema. They are not checked if one of these checks failed.
    needed = {"configuration", "database", "schema"}
    if not invariants or needed - {result.check for result in results if result.good}:
        return results, None
    async with database(load()) as conn:
        # Without the presets' limits: the rows do not say which limit a preset had when a job's errors were counted.
        return results, await report(conn, {})


def _print(result: CheckResult) -> None:
    verdict = "FAIL" if not result.good else "warn" if result.fix else "ok  "
    echo(f"{verdict}  {result.check}: {cell(result.found)}")
    if result.fix:
        echo(f"      fix: {cell(result.fix)}")


def _print_report(report: Report) -> None:
    from engine.queries.invariants import INVARIANTS

    echo(f"{report.jobs} jobs checked")
    broken = {finding.invariant.name: finding for finding in report.findings}
    for invariant in INVARIANTS:
        finding = broken.get(invariant.name)
        echo(f"{'FAIL' if finding else 'ok  '}  {invariant.name}: {invariant.states}")
        if finding:
            for job_id, detail in finding.offenders:
                echo(f"      {job_id}: {detail}")
            echo(f"      {finding.jobs} jobs in all")


def _document(results: list[CheckResult], report: Report | None) -> dict[str, Any]:
    from dataclasses import asdict

    from engine.queries.invariants import INVARIANTS

    document: dict[str, Any] = {"checks": [asdict(result) for result in results], "invariants": None}
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
