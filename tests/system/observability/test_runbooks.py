"""Each alert has its section in ops/runbooks.md, and what that section says to type can be typed."""

from __future__ import annotations

import re
import shlex
from typing import Any, Final, NamedTuple
from uuid import uuid4

import pytest
from psycopg.sql import SQL
from typer.main import get_command

from engine.settings import PREFIX, Settings
from ops.cli.app import app
from ops.grafana.__main__ import BOARDS
from ops.harness.process import ROOT
from tests.ops.deploy.manifests import CLOUD_RUN, DEPLOY, KUBERNETES, ROLES, document
from tests.support.database import Conn
from tests.system.observability.rules import ALERTS

TEXT: Final = (ROOT / "ops" / "runbooks.md").read_text()
DATABASE: Final = "$OUTRIDER_DATABASE_URL"
STANDS_FOR: Final = {"$JOB": str(uuid4()), "$PRESET": "storyboard", "$EVENT": "7"}


class Section(NamedTuple):
    title: str
    text: str

    @property
    def blocks(self) -> list[list[str]]:
        found = re.findall(r"^```bash\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        return [block.splitlines() for block in found]


SECTIONS: Final = {
    title: Section(title, text)
    for title, text in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}
PLACES: Final = Section("", TEXT.split("\n## ")[0]).blocks[0]
COMMANDS: Final = sorted({line for each in SECTIONS.values() for block in each.blocks for line in block})


def test_every_alert_has_a_section_and_every_section_an_alert() -> None:
    assert list(SECTIONS) == list(ALERTS)


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_says_what_it_means_three_commands_and_what_fixes_it(title: str) -> None:
    section = SECTIONS[title]
    assert re.search(
        r"^\*\*Meaning\.\*\* .*^```bash.*^\*\*Fix\.\*\* ", section.text, re.MULTILINE | re.DOTALL
    )
    assert len(section.blocks[0]) == 3


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_command_can_be_typed(command: str, conn: Conn) -> None:
    program, *arguments = [STANDS_FOR.get(word, word) for word in shlex.split(command)]
    if program == "outrider":
        parse(arguments)
        return
    assert (program, arguments[:2]) == ("psql", [DATABASE, "-c"])
    [statement] = arguments[2:]
    await conn.execute(SQL(statement))


def test_each_place_to_type_a_command_in_is_one_that_is_deployed() -> None:
    [kubectl, compose, systemd, cloud_run, local] = PLACES
    assert [name for name in re.findall(r"deploy/(\w+) --", kubectl) if name not in ROLES] == []
    assert f"-n {document(KUBERNETES / 'kustomization.yaml')['namespace']} " in kubectl
    assert compose.split()[3] in document(DEPLOY / "compose.yaml")["services"]
    unit = (DEPLOY / "systemd" / "outrider@.service").read_text()
    assert [path for path in re.findall(r"=-?(/etc/outrider/[a-z]+(?:\.env)?|/opt\S+)", systemd)
            if path.replace("worker.env", "%i.env") not in unit] == []  # fmt: skip
    assert cloud_run.split()[4] == document(CLOUD_RUN / "migrate.yaml")["metadata"]["name"]
    assert all("outrider doctor" in place.replace("--args=doctor", "outrider doctor") for place in PLACES)
    assert local.startswith("outrider ")


def parse(arguments: list[str], command: Any = None, parent: Any = None) -> None:
    """As the command line does before it runs anything. Raises UsageError, of Typer's own Click."""
    command = command or get_command(app)
    context = command.make_context(command.name, arguments, parent)
    if hasattr(command, "resolve_command"):
        _, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        parse(rest, found, context)


@pytest.mark.parametrize("command", ["outbox statuses", "outbox status --all", "jobs show", "explain 7"])
def test_a_command_that_cannot_be_typed_is_found(command: str) -> None:
    with pytest.raises(Exception, match=r"No such|Missing|valid UUID"):
        parse(command.split())


def test_the_log_events_that_are_named_are_logged() -> None:
    named = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", TEXT))
    sources = [
        file.read_text()
        for part in ("engine", "web", "relay", "worker")
        for file in (ROOT / part).rglob("*.py")
    ]
    assert {event for event in named if not any(f'"{event}"' in source for source in sources)} == set()


def test_the_variables_that_are_named_are_settings() -> None:
    named = set(re.findall(rf"{PREFIX}(\w+)", TEXT))
    assert named <= {field.upper() for field in Settings.model_fields}


def test_the_dashboards_that_are_named_are_made() -> None:
    named = set(re.findall(r"\*(Outrider: [\w ]+)\*", " ".join(TEXT.split())))
    assert named
    assert named <= {board.title for board in BOARDS.values()}


def test_links_lead_to_sections() -> None:
    assert set(re.findall(r"\]\(#(\w+)\)", TEXT)) <= {title.lower() for title in SECTIONS}
