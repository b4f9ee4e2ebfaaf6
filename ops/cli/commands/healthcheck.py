"""`outrider healthcheck`: a container's probe."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from ops.cli.output import AsJson, as_json, echo

PROBE_SECONDS = 4.0


class Role(StrEnum):
    WEB = "web"
    RELAY = "relay"
    WORKER = "worker"


def healthcheck(
    role: Annotated[
        Role | None, typer.Argument(help="Ask the process of this role, if OUTRIDER_ADMIN_PORT is not set.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Ask this admin port.")] = None,
    json: AsJson = False,
) -> None:
    """Ask a process on this machine whether it is alive and ready. Exit code 0 if it is, else 3.

    Without a role and a configured port, ask every process of a local `up`, or every process on the default ports.
    """
    from engine.process.run import DONE, UNHEALTHY

    answers = _answers(role, port)
    healthy = bool(answers) and all(answer["healthy"] for answer in answers.values())
    if json:
        as_json({"healthy": healthy, "processes": answers})
    else:
        for where, answer in answers.items():
            echo(f"{where}: {answer['detail']}")
        if not answers:
            echo("no process answers on the default admin ports")
    raise typer.Exit(DONE if healthy else UNHEALTHY)


def _answers(role: Role | None, port: int | None) -> dict[str, dict[str, object]]:
    from engine.process.admin import PORTS
    from engine.settings import load
    from ops.cli.addresses import local, reachable

    settings = load()
    up = None if port else local(settings, "admin")
    host = reachable(up.admin_host if up else settings.admin_host)
    ports = up.admin if up else PORTS
    known = port or settings.admin_port or (ports[role] if role else None)
    absent = {"healthy": False, "detail": "no answer"}
    if known:
        return {f"{host}:{known}": _probe(host, known) or absent}
    found = {f"{name} {host}:{each}": _probe(host, each) for name, each in ports.items()}
    return {where: answer or absent for where, answer in found.items() if answer or up}


def _probe(host: str, port: int) -> dict[str, object] | None:
    """The answer of /readyz. None if no process listens. A process that is not alive does not answer /readyz."""
    import json
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection(host.strip("[]"), port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        said = json.loads(response.read(65_536))
        failing = [f"{check}: {word}" for check, word in said.get("checks", {}).items() if word != "ok"]
    except ConnectionRefusedError:
        return None
    except (OSError, HTTPException, ValueError, AttributeError) as error:
        return {"healthy": False, "detail": f"no valid answer: {error or type(error).__name__}"}
    finally:
        connection.close()
    healthy = response.status == 200
    return {"healthy": healthy, "detail": "ready" if healthy else "; ".join(failing) or "not ready"}
