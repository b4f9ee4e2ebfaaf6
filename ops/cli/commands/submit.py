"""`outrider submit`: submits a job to a running web process over HTTP, as any client does."""

from __future__ import annotations

import asyncio
import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.cli.output import AsJson, as_json, complain, echo

if TYPE_CHECKING:
    from ops.cli.client import Client

TOKEN_SECONDS = 24 * 3600


def submit(
    preset: Annotated[str, typer.Argument(help="The preset to run; see GET /pipeline/presets.")],
    source: Annotated[
        str | None, typer.Argument(metavar="[-]", help="`-` reads the content from standard input.")
    ] = None,
    content: Annotated[str | None, typer.Option(help="The content as text.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A file with the content in UTF-8."),
    ] = None,
    metadata: Annotated[str, typer.Option(help="A JSON object that fits the preset.")] = "{}",
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Show progress until the job ends. Exit code 1 unless it completed."),
    ] = False,
    url: Annotated[
        str | None,
        typer.Option(help="URL of web. Default: by OUTRIDER_HTTP_HOST and _PORT, else of a local `up`."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(help="Default: signed with OUTRIDER_JWT_SECRET or the secret of a local `up`."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Submit a job and print its id. With --wait, print its result."""
    from engine.process.run import FAILED
    from ops.cli.client import Client, ClientError

    job = {"preset": preset, "content": _content(source, content, file), "metadata": _object(metadata)}
    base, bearer = _target(url, token)

    async def run() -> dict[str, Any]:
        async with Client(base, bearer) as client:
            accepted = await client.submit(job)
            return await _watched(client, accepted["job_id"]) if wait else accepted

    try:
        answer = asyncio.run(run())
    except ClientError as error:
        complain(f"outrider: {error}")
        raise typer.Exit(FAILED) from None
    if json:
        as_json(answer)
    elif not wait:
        echo(answer["job_id"])
    elif answer["status"] == "completed":
        as_json(answer["result"])
    if wait and answer["status"] != "completed":
        why = answer["error"] or {}
        complain(
            f"{answer['job_id']} {answer['status']}: {why.get('type', '')} {why.get('message', '')}".rstrip(
                ": "
            )
        )
        raise typer.Exit(FAILED)


async def _watched(client: Client, job_id: str) -> dict[str, Any]:
    """Follow the job to its end and return it. The bar is drawn on standard error, and only on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("pending", total=1.0)
        async for event, data in client.follow(job_id):
            if event == "progress":
                bar.update(task, completed=data["fraction"], description=data["message"] or "processing")
            else:
                bar.update(task, completed=0.0, description=data["to_status"])
    return await client.job(job_id)


def _content(source: str | None, content: str | None, file: Path | None) -> str:
    if source not in (None, "-"):
        raise typer.BadParameter("give the content by --content, --file or `-`")
    if sum(given is not None for given in (source, content, file)) != 1:
        raise typer.BadParameter("give the content once: --content, --file or `-`")
    if content is not None:
        return content
    try:
        return (file.read_bytes() if file else sys.stdin.buffer.read()).decode()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"the content is not UTF-8: {error}") from None


def _object(metadata: str) -> dict[str, Any]:
    try:
        parsed = jsonlib.loads(metadata)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--metadata") from None
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise typer.BadParameter("not a JSON object", param_hint="--metadata")
    return parsed


def _target(url: str | None, token: str | None) -> tuple[str, str]:
    from engine.settings import load
    from ops.cli.addresses import web_address
    from ops.cli.context import LOCAL_OWNER, sign, signing_secret

    settings = load()
    base = url or web_address(settings)
    if not base.startswith(("http://", "https://")):
        raise typer.BadParameter("not an http or https URL", param_hint="--url")
    if token is None:
        token = sign(settings, signing_secret(settings), sub=LOCAL_OWNER, seconds=TOKEN_SECONDS)
    return base.rstrip("/"), token
