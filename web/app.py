"""The application: every operation of the API, the documentation, and a problem for every other path or method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web

from web import docs, metrics, middleware, openapi
from web.api import OPERATIONS
from web.cors import OF_NO_REQUEST, Cors
from web.operations import Api, Handler
from web.problems import Refused


def create_app(api: Api) -> web.Application:
    """The application over `api`, which must outlive the application. Serve it with `web.server.serving`."""
    metrics.show(api.registry)
    app = web.Application(middlewares=[middleware.boundary(api)])
    app.on_response_prepare.append(middleware.finish_headers)
    cors = Cors(api.cors_origins, OPERATIONS)
    app[OF_NO_REQUEST] = cors.of_no_request()
    if cors.on:
        app.on_response_prepare.append(cors.finish_headers)
    paths: defaultdict[str, dict[str, Handler]] = defaultdict(dict)
    for operation in OPERATIONS:
        paths[operation.path][operation.method] = operation.bind(api)
    for path, handler in docs.pages(openapi.document(OPERATIONS, api.registry)).items():
        paths[path]["GET"] = handler
    for path, by_method in paths.items():
        _add(app, path, by_method, cors)
    app.router.add_route("*", "/{path:.*}", _unknown, expect_handler=_expected)

    async def stop_waiting(_app: web.Application) -> None:
        api.store.watcher.close()

    app.on_shutdown.append(stop_waiting)
    return app


def _add(app: web.Application, path: str, by_method: Mapping[str, Handler], cors: Cors) -> None:
    """Add the routes of `path`. GET answers HEAD, too. Other methods get 405, even OPTIONS unless `cors` is on."""
    methods = dict(by_method)
    if "GET" in methods:
        methods["HEAD"] = methods["GET"]
    allow = ", ".join(sorted(methods))

    async def refuse(_request: web.Request) -> web.StreamResponse:
        raise Refused(
            HTTPStatus.METHOD_NOT_ALLOWED, f"This path allows only {allow}.", headers={"Allow": allow}
        )

    if cors.on:
        methods["OPTIONS"] = cors.preflight(allow, refuse)
    for method, handler in methods.items():
        app.router.add_route(method, path, handler, expect_handler=_expected)
    app.router.add_route("*", path, refuse, expect_handler=_expected)


async def _unknown(_request: web.Request) -> web.StreamResponse:
    raise Refused(HTTPStatus.NOT_FOUND, "There is no resource at this path.")


async def _expected(_request: web.Request) -> None:
    """Leave `Expect: 100-continue` to the reading of the body, which a refused request's is never asked for."""
