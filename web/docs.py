"""/openapi.json, and /docs to read it: Swagger UI from the installed package, nothing from other hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web
from swagger_ui_bundle import swagger_ui_path

from web.operations import Handler
from web.wire.schema_text import schema_text

POLICY: Final = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
PAGE: Final = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Outrider</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# The bundled Swagger UI refuses a document that says 3.1, but can show the parts of 3.1 that this document uses.
START: Final = b"""fetch("openapi.json").then((answer) => answer.json()).then((spec) =>
  SwaggerUIBundle({spec: {...spec, openapi: "3.0.3"}, dom_id: "#ui", validatorUrl: null}));
"""


def pages(document: Mapping[str, Any]) -> dict[str, Handler]:
    """The handlers by path."""
    script = "text/javascript"
    return {
        "/openapi.json": _fixed(schema_text(document), "application/json"),
        "/docs": _fixed(PAGE, "text/html"),
        "/docs/start.js": _fixed(START, script),
        "/docs/swagger-ui-bundle.js": _fixed((swagger_ui_path / "swagger-ui-bundle.js").read_bytes(), script),
        "/docs/swagger-ui.css": _fixed((swagger_ui_path / "swagger-ui.css").read_bytes(), "text/css"),
    }


def _fixed(body: bytes, media: str) -> Handler:
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}

    async def handle(_request: web.Request) -> web.Response:
        return web.Response(body=body, content_type=media, headers=headers)

    return handle
