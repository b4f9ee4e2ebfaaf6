"""`python -m ops.harness.pubsub_fake`: runs the fake as a separate process.

Prints one line of JSON, `host` for PUBSUB_EMULATOR_HOST and `control` for `Remote`, and runs until a signal ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from threading import Thread

import grpc.aio

from ops.harness.pubsub_fake.control import UNBOUNDED, Control
from ops.harness.pubsub_fake.server import FakePubSub


async def serve(fake: FakePubSub, control_port: int) -> None:
    server = grpc.aio.server(options=UNBOUNDED)
    server.add_generic_rpc_handlers([Control(fake).handler()])
    port = server.add_insecure_port(f"127.0.0.1:{control_port}")
    await server.start()
    async with fake:
        print(json.dumps({"host": fake.host, "control": f"127.0.0.1:{port}"}), flush=True)
        await server.wait_for_termination()


def end_with_parent() -> None:
    """End at once, without clean-up, when standard input ends."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.harness.pubsub_fake", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port of Pub/Sub; 0 means any free port")
    parser.add_argument(
        "--control-port", type=int, default=0, help="port for injecting faults; 0 means any free port"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults' randomness")
    parser.add_argument(
        "--no-history", action="store_true", help="count published messages, but do not keep them"
    )
    parser.add_argument("--tied", action="store_true", help="end when standard input ends")
    given = parser.parse_args()
    if given.tied:
        Thread(target=end_with_parent, daemon=True).start()
    fake = FakePubSub(given.port, seed=given.seed, keep_history=not given.no_history)
    asyncio.run(serve(fake, given.control_port))


if __name__ == "__main__":
    main()
