"""What linters say of the document, and whether every generator takes it, whatever presets there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.pipeline import Pipeline, Registry
from engine.pipelines.storyboard import storyboard
from tests.web.clients.pipelines import pipelines
from tests.web.clients.tools import Tools, installed
from tests.web.openapi.odd_metadata import Odd, Zoo
from web.api import OPERATIONS
from web.openapi import document
from web.wire.schema_text import schema_text

RULES = Path(__file__).with_name("spectral.yaml")
ODD = [
    Pipeline(preset="odd", function=print, metadata=Odd),
    Pipeline(preset="zoo", function=print, metadata=Zoo, description='a "zoo" */'),
]
PRESETS: dict[str, list[Pipeline]] = {
    "none": [],
    "one": [storyboard],
    "many": [storyboard, *pipelines, *ODD],
}


@pytest.fixture(scope="module")
def tools() -> Tools:
    return installed()


@pytest.fixture(params=PRESETS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """With the document of these presets as openapi.json."""
    described = document(OPERATIONS, Registry(PRESETS[request.param]))
    (tmp_path / "openapi.json").write_bytes(schema_text(described))
    return tmp_path


@pytest.mark.long
def test_redocly_finds_nothing(tools: Tools, folder: Path) -> None:
    ended = tools.ended("redocly", "lint", "--format", "json", "openapi.json", cwd=folder)
    assert json.loads(ended.stdout)["problems"] == [], ended.stderr


@pytest.mark.long
def test_spectral_finds_nothing(tools: Tools, folder: Path) -> None:
    tools.run("spectral", "lint", "--ruleset", RULES, "--fail-severity", "hint", "openapi.json", cwd=folder)


@pytest.mark.long
def test_what_generators_make_can_be_imported(tools: Tools, folder: Path) -> None:
    simple = ("--path", "openapi.json", "--meta", "none", "--output-path", "simple", "--fail-on-warning")
    tools.run("openapi-python-client", "generate", *simple, cwd=folder)
    full = ("-i", "openapi.json", "-g", "python", "-o", ".", "--package-name", "full")
    tools.run("openapi-generator-cli", "generate", *full, cwd=folder)
    tools.run("openapi-typescript", "openapi.json", "-o", "schema.d.ts", cwd=folder)
    imports = "import simple.models, simple.api.jobs.run, full; full.JobsApi(); full.Batch"
    tools.run("python", "-c", imports, cwd=folder)
    tools.run("tsc", "--strict", "--noEmit", "schema.d.ts", cwd=folder)
