"""What a child that an author's code starts shares with our process: nothing that it could stop, hold or break."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.engine.process.test_run import WAIT_SECONDS, started

# `inside` is the author's code: it runs in a thread, and its answer is what the process says and returns.
BODY = """
import logging, multiprocessing, os, signal, subprocess
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
import prometheus_client, structlog

def held(pid):
    "What the process keeps open, beside pipes and plain files."
    links = []
    for link in Path(f"/proc/{{pid}}/fd").iterdir():
        try:
            links.append(str(link.readlink()))
        except FileNotFoundError:
            pass
    return [link for link in links if link.startswith(("socket:", "anon_inode:"))]

def exit_code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

{given}

async def main(settings, stop):
    global loop
    loop = asyncio.get_running_loop()
    answer = await asyncio.to_thread(inside)
    await asyncio.sleep(0)  # a signal of this process would be handled now
    print("answer", answer, stop.is_set(), flush=True)
    return 7
"""


async def said_by(given: str) -> tuple[str, str]:
    """What the process printed, and what it logged, once it has ended by itself."""
    async with started(BODY.format(given=given)) as child:
        assert child.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            printed, logged = await child.communicate()
    assert child.returncode == 7, logged.decode()
    return printed.decode().strip(), logged.decode()


TERMINATED = {
    "a process": """
def inside():
    child = multiprocessing.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join()
    return child.exitcode
""",
    "a child that is signalled before it has begun": """
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))

def inside():
    child = os.fork()
    if not child:
        time.sleep(60)  # for the signal, which must end it long before
    return exit_code(child)
""",
    "the child of a child": """
def inside():
    child = os.fork()
    if not child:
        grandchild = os.fork()
        if not grandchild:
            time.sleep(60)
        os.kill(grandchild, signal.SIGTERM)
        assert exit_code(grandchild) == -signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    return exit_code(child)
""",
}


@pytest.mark.parametrize("given", TERMINATED.values(), ids=TERMINATED)
async def test_a_signal_for_a_child_is_the_child_s_alone(given: str) -> None:
    printed, logged = await said_by(given)
    assert printed == f"answer {-signal.SIGTERM} False"
    assert "process.stopping" not in logged


POOLS = {
    "multiprocessing": """
def inside():
    with multiprocessing.Pool(2) as pool:
        return sum(pool.map(abs, range(10)))
""",
    "concurrent.futures": """
def inside():
    with ProcessPoolExecutor(2) as pool:
        return sum(pool.map(abs, range(10)))
""",
}


@pytest.mark.parametrize("given", POOLS.values(), ids=POOLS)
async def test_a_pool_of_processes_ends_and_the_worker_goes_on(given: str) -> None:
    printed, logged = await said_by(given)
    assert printed == "answer 45 False"
    assert "process.stopping" not in logged


async def test_a_forked_child_holds_nothing_of_the_event_loop() -> None:
    printed, _ = await said_by("""
def inside():
    begun, begin = os.pipe()
    child = os.fork()
    if not child:
        os.write(begin, b"x")
        time.sleep(60)
    os.read(begun, 1)
    found = held(child), len(held(os.getpid())) >= 3
    os.kill(child, signal.SIGKILL)
    exit_code(child)
    return found
""")
    assert printed == "answer ([], True) False"


async def test_a_forked_child_keeps_what_the_author_opened() -> None:
    printed, _ = await said_by("""
import socket

def inside():
    ours, its = socket.socketpair()
    child = os.fork()
    if not child:
        its.sendall(b"here")
        os._exit(0)
    return ours.recv(9), exit_code(child)
""")
    assert printed == "answer (b'here', 0) False"


async def test_a_forked_child_runs_an_event_loop_of_its_own() -> None:
    printed, _ = await said_by("""
async def looped():
    await asyncio.sleep(0)
    return 3

async def forked():
    child = os.fork()
    if not child:
        os._exit(asyncio.run(looped()))
    return exit_code(child)

def inside():
    return asyncio.run_coroutine_threadsafe(forked(), loop).result()
""")
    assert printed == "answer 3 False"


LOCKS = {
    "the log's": ("logs._lines._writing", "structlog.get_logger().warning('a.said')"),
    "the standard library's": (
        "logging.getLogger().handlers[0].lock",
        "logging.getLogger('x').warning('said')",
    ),
    "a metric's": ("COUNTER._lock", "COUNTER.labels('b').inc()"),
    "a value's": ("COUNTER.labels('a')._value._lock", "COUNTER.labels('a').inc()"),
    "the registry's": ("prometheus_client.REGISTRY._lock", "prometheus_client.Counter('other', 'x')"),
}


@pytest.mark.parametrize(("lock", "use"), LOCKS.values(), ids=LOCKS)
async def test_a_lock_that_another_thread_holds_at_the_fork_does_not_stop_the_child(
    lock: str, use: str
) -> None:
    printed, _ = await said_by(f"""
from engine.telemetry import logs

COUNTER = prometheus_client.Counter("some", "x", ["y"])
COUNTER.labels("a")

def inside():
    holds, done = threading.Event(), threading.Event()

    def hold():
        with {lock}:
            holds.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    holds.wait()
    child = os.fork()
    if not child:
        signal.alarm(5)
        {use}
        os._exit(3)
    done.set()
    holder.join()
    return exit_code(child)
""")
    assert printed == "answer 3 False"


async def test_a_line_that_waits_at_the_fork_is_written_once() -> None:
    _, logged = await said_by("""
async def forked():
    structlog.get_logger().info("a.said")
    child = os.fork()
    if not child:
        structlog.get_logger().warning("b.said")
        os._exit(0)
    return exit_code(child)

def inside():
    return asyncio.run_coroutine_threadsafe(forked(), loop).result()
""")
    assert logged.count("a.said") == logged.count("b.said") == 1


OTHER_CHILDREN = {
    "spawn": "multiprocessing.get_context('spawn').Process(target=time.sleep, args=(60,))",
    "forkserver": "multiprocessing.get_context('forkserver').Process(target=time.sleep, args=(60,))",
}


@pytest.mark.parametrize("child", OTHER_CHILDREN.values(), ids=OTHER_CHILDREN)
async def test_a_spawned_child_holds_nothing_of_ours_and_starts_no_second_process(child: str) -> None:
    printed, logged = await said_by(f"""
def inside():
    child = {child}
    child.start()
    found = [link for link in held(child.pid) if link in held(os.getpid()) and "socket" in link]
    child.terminate()
    child.join()
    return found, child.exitcode
""")
    assert printed == f"answer ([], {-signal.SIGTERM}) False"
    assert "process.stopping" not in logged


async def test_an_executed_child_holds_nothing_of_ours() -> None:
    printed, _ = await said_by("""
def inside():
    found = []
    command = ["/bin/sleep", "60"]
    pids = [os.posix_spawn(command[0], command, os.environ), subprocess.Popen(command, close_fds=False).pid]
    forked = os.fork()
    if not forked:
        os.execv(command[0], command)
    for pid in (*pids, forked):
        while "sleep" not in Path(f"/proc/{pid}/comm").read_text():
            time.sleep(0.01)
        found += held(pid)
        os.kill(pid, signal.SIGTERM)
        assert exit_code(pid) == -signal.SIGTERM
    return found
""")
    assert printed == "answer [] False"


async def test_a_forked_child_holds_no_connection_to_the_broker() -> None:
    body = """
        import os, signal
        from engine.pubsub.client import open_publisher
        from ops.harness.pubsub_fake import FakePubSub

        def held(pid):
            "The TCP connections of the process."
            links = [f"/proc/{pid}/fd/{number}" for number in range(256)]
            found = [os.readlink(link) for link in links if os.path.islink(link)]
            return [link for link in found if link.startswith("socket:") and link[8:-1] in tcp()]

        def tcp():
            return [line.split()[9] for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}")]

        async def main(settings, stop):
            # A server in the same process keeps gRPC so busy that some of its own handlers of a fork do nothing.
            async with FakePubSub() as fake:
                os.environ["PUBSUB_EMULATOR_HOST"] = fake.host
                async with open_publisher() as publisher:
                    await publisher.transport.grpc_channel.channel_ready()
                    begun, begin = os.pipe()
                    child = os.fork()
                    if not child:
                        os.write(begin, b"x")
                        time.sleep(60)
                    os.read(begun, 1)
                    print(held(child), len(held("self")) > 0, flush=True)
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    await publisher.transport.grpc_channel.channel_ready()
            return 7
    """
    async with started(body) as child, asyncio.timeout(WAIT_SECONDS):
        printed, logged = await child.communicate()
    assert child.returncode == 7, logged.decode()
    assert printed.decode().strip() == "[] True"
