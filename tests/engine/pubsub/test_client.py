"""The meaning of Pub/Sub's errors, and the connections of its clients."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import grpc
import pytest

from engine.pubsub.client import EMULATOR, OPTIONS, Fault, code, details, fault, open_publisher
from ops.harness.pubsub_fake import FakePubSub
from ops.waiting import until
from tests.support.tcp_proxy import tcp_proxy

BY_HAND = {
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION,
}


@pytest.mark.parametrize("status", list(grpc.StatusCode), ids=lambda status: str(status.name))
def test_only_an_invalid_argument_is_the_messages_fault_and_would_set_it_aside(
    status: grpc.StatusCode,
) -> None:
    error = grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata())
    refused = status is grpc.StatusCode.INVALID_ARGUMENT
    assert (fault(error) is Fault.REFUSED) == refused
    assert (fault(error) is Fault.MISCONFIGURED) == (status in BY_HAND)


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many\nopen files"), grpc.aio.UsageError("the channel is closed"), ValueError()]
)
def test_what_fails_before_the_broker_passes_and_is_named_in_one_line(error: Exception) -> None:
    assert fault(error) is Fault.PASSING
    assert code(error) is grpc.StatusCode.UNKNOWN
    assert details(error).startswith(type(error).__name__)
    assert "\n" not in details(error)


def test_an_idle_client_pings_less_often_than_every_server_of_grpc_allows_by_default() -> None:
    five_minutes = 300_000
    options = dict(OPTIONS)
    assert options["grpc.keepalive_time_ms"] > five_minutes
    assert "grpc.keepalive_permit_without_calls" not in options


async def test_a_connection_that_an_idle_client_keeps_is_closed_before_a_network_forgets_it(
    fake: FakePubSub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dict(OPTIONS)["grpc.client_idle_timeout_ms"] <= 180_000
    brief = dict(OPTIONS) | {"grpc.client_idle_timeout_ms": 1_000}
    monkeypatch.setattr("engine.pubsub.client.OPTIONS", tuple(brief.items()))
    async with tcp_proxy(fake.port) as proxy:
        monkeypatch.setenv(EMULATOR, proxy.host)
        async with open_publisher() as client:
            await client.create_topic(name="projects/p/topics/topic", timeout=5)
            await until(lambda: not proxy.open)
            await client.get_topic(topic="projects/p/topics/topic", timeout=5, retry=None)
        assert proxy.connections == 2


PINGING = """
import asyncio
from engine.settings import load
from engine.telemetry import logs
logs.configure(load({"OUTRIDER_LOG_FORMAT": "json"}), "test")
import grpc.aio


class Slow(grpc.GenericRpcHandler):
    def service(self, _details):
        async def answer(_request, _context):
            await asyncio.sleep(30)
        return grpc.unary_unary_rpc_method_handler(answer)


async def main():
    server = grpc.aio.server(options=[("grpc.http2.max_ping_strikes", 1)])
    server.add_generic_rpc_handlers([Slow()])
    host = "127.0.0.1:{}".format(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    options = [("grpc.keepalive_time_ms", 1000), ("grpc.http2.max_pings_without_data", 0)]
    async with grpc.aio.insecure_channel(host, options=options) as channel:
        try:
            await channel.unary_unary("/service/method")(b"", timeout=20)
        except grpc.RpcError as error:
            print(error.details())
    await server.stop(0)


asyncio.run(main())
"""


WITHOUT_CREDENTIALS = """
import asyncio
from engine.settings import load
from engine.telemetry import logs
logs.configure(load({"OUTRIDER_LOG_FORMAT": "json"}), "test")
import grpc.aio
from google.auth.exceptions import RefreshError
from google.auth.transport.grpc import AuthMetadataPlugin


class Revoked:
    def before_request(self, *_):
        raise RefreshError("invalid_grant")


async def main():
    server = grpc.aio.server()
    host = "127.0.0.1:{}".format(server.add_secure_port("127.0.0.1:0", grpc.local_server_credentials()))
    await server.start()
    plugin = grpc.metadata_call_credentials(AuthMetadataPlugin(Revoked(), None))
    credentials = grpc.composite_channel_credentials(grpc.local_channel_credentials(), plugin)
    async with grpc.aio.secure_channel(host, credentials) as channel:
        try:
            await channel.unary_unary("/service/method")(b"", timeout=20)
        except grpc.RpcError as error:
            print(error.details())
    await server.stop(0)


asyncio.run(main())
"""


def test_credentials_that_fail_are_told_by_the_call_alone() -> None:
    ended = python(WITHOUT_CREDENTIALS, dict(os.environ))
    assert "invalid_grant" in ended.stdout
    assert not ended.stderr


@pytest.mark.parametrize("verbosity", [None, "error"])
def test_what_grpc_itself_prints_is_silent_unless_it_is_asked_for(verbosity: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    if verbosity:
        environment["GRPC_VERBOSITY"] = verbosity
    ended = subprocess.run(
        [sys.executable, "-c", PINGING],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.strip() == "Too many pings"
    assert ("GOAWAY" in ended.stderr) == bool(verbosity)
    assert verbosity or not ended.stderr


def python(program: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
