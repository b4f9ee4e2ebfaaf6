"""The OpenAPI 3.1 document of a list of operations, for the presets of one installation.

Client generators read it, so each shape here is one that they turn into right types and right JSON:
tests/web/clients/ generates three clients and uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from engine import version
from engine.pipeline import Registry
from web.openapi.paths import BEARER, path_items
from web.openapi.schemas import schemas
from web.openapi.shapes import Json
from web.operations import Operation

TAGS: Final = {
    "jobs": "Submit jobs, follow them, stop them.",
    "presets": "What can be run here.",
    "health": "For load balancers and orchestrators. No token is needed.",
}


def document(operations: Sequence[Operation], registry: Registry) -> Json:
    """The whole document. JobToRun has one variant per preset, with that preset's metadata schema."""
    info: dict[str, Any] = {
        "title": "Outrider",
        "version": version.installed(),
        "description": "Jobs in, results out: a transactional-outbox job engine.",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    }
    schemes = {BEARER: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    return {
        "openapi": "3.1.0",
        "info": info,
        "servers": [{"url": "/", "description": "The host that serves this document."}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": path_items(operations, registry),
        "components": {"schemas": schemas(operations, registry), "securitySchemes": schemes},
    }
