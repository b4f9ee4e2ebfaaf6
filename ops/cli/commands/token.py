"""`outrider token`: a signed token, for a client or a test."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

import typer

from ops.cli.output import AsJson, as_json, echo

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class Scope(StrEnum):
    READ = "jobs:read"
    WRITE = "jobs:write"
    ADMIN = "jobs:admin"


def duration(text: str) -> int:
    """'90', '15m', '12h', '30d' → seconds."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if match is None or not int(match[1]):
        raise typer.BadParameter("not a duration such as 90, 15m, 12h or 30d", param_hint="--ttl")
    return int(match[1]) * UNITS[match[2]]


def token(
    sub: Annotated[str, typer.Option(help="The owner of the jobs.")],
    scope: Annotated[
        list[Scope] | None, typer.Option(help="May be repeated. Default: jobs:read and jobs:write.")
    ] = None,
    ttl: Annotated[
        str, typer.Option(help="How long the token is valid, in seconds or as 15m, 12h, 30d.")
    ] = "1h",
    json: AsJson = False,
) -> None:
    """Print a token signed with OUTRIDER_JWT_SECRET, or with the secret of a local `outrider up`."""
    from engine.settings import load
    from ops.cli.context import sign, signing_secret

    if not 1 <= len(sub) <= 255:
        raise typer.BadParameter("not 1 to 255 characters", param_hint="--sub")
    seconds = duration(ttl)
    settings = load()
    signed = sign(settings, signing_secret(settings), sub=sub, seconds=seconds, scopes=scope or ())
    if json:
        as_json({"token": signed, "sub": sub, "expires_in": seconds})
    else:
        echo(signed)
