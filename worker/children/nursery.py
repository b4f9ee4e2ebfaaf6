"""The nursery: a process that has imported the engine and nothing of an author's, and forks the worker's children.

It has one thread, no connection and no lock, so its forks are safe, quick, and share its memory. It is the reaper of
whatever its children leave behind (engine/process/prctl.py): a process that outlives its attempt is killed.
When the worker ends, however it ends, the nursery ends, and with it all children.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import select
import signal
import socket
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from engine.process.prctl import adopt_orphans, die_with_parent
from worker.children import child
from worker.children.requests import MAX_REQUEST, Exited, Kill, Refused, Start
from worker.children.setting import Setting

SWEEP_SECONDS: Final = 1.0
"""How often orphans are looked for while no child ends."""
FAULTS: Final = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGABRT,
    signal.SIGTRAP,
    signal.SIGSYS,
}
"""Signals of a fault in this process itself."""
HELD: Final = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}
"""Signals that cannot be ignored, and the one that tells that a child has ended."""
ERRORS: Final = {signal.SIGPIPE, signal.SIGXFSZ}
"""Signals that Python ignores in every process: what is written there raises OSError instead."""
DESCRIPTORS: Final = 3
END_SECONDS: Final = 3.0
REAP_SECONDS: Final = 0.01


class Nursery:
    """Serves one worker by its `control` socket, of the kind SOCK_SEQPACKET."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._worker = os.getppid()
        self._names: dict[int, int] = {}
        """The name of each living child, by its process id."""
        self._woken, waking = socket.socketpair()
        self._waking = waking
        for each in (self._woken, waking):
            each.setblocking(False)

    def serve(self) -> None:
        """Serve until the worker has gone."""
        signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while os.getppid() == self._worker:
            ready, _, _ = select.select([self._control, self._woken], (), (), SWEEP_SECONDS)
            if self._control in ready and not self._heed():
                return
            if self._woken in ready:
                self._woken.recv(4096)
            self._reap()

    def _heed(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(
            # Else what a child starts by another way than subprocess would keep its link.
            self._control,
            MAX_REQUEST,
            DESCRIPTORS,
            socket.MSG_CMSG_CLOEXEC,
        )
        if not data:
            return False
        match pickle.loads(data):  # noqa: S301 - from our own worker
            case Start(name, setting):
                self._fork(name, setting, descriptors)
            case Kill(name, number, group):
                self._kill(name, number, group=group)
        return True

    def _fork(self, name: int, setting: Setting, descriptors: list[int]) -> None:
        nursery = os.getpid()
        try:
            pid = os.fork()
            if pid == 0:
                _become(nursery, setting, descriptors, (self._control, self._woken, self._waking))
            self._names[pid] = name
        except OSError as error:
            # The user or the container has reached its limit of processes.
            self._tell(Refused(name, str(error)))
        finally:
            for each in descriptors:
                os.close(each)

    def _kill(self, name: int, number: int, *, group: bool) -> None:
        # Children are reaped here and nowhere else, so a process id that is known has not been given to another one.
        for pid in [pid for pid, its in self._names.items() if its == name]:
            # It has ended or become another user's; its group is not there before its first step.
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
            if group:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, number)

    def _reap(self) -> None:
        """Tell the worker of children that have ended, and kill what they have left behind."""
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                break
            if (name := self._names.pop(pid, None)) is not None:
                # The rest of its group, which may have been adopted by nobody yet.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
                self._tell(Exited(name, status, used.ru_maxrss * 1024))
        _kill(orphan for orphan in _children() if orphan not in self._names)

    def _tell(self, message: Exited | Refused) -> None:
        # The worker has gone: the next look at the control socket ends the nursery.
        with suppress(OSError):
            self._control.send(pickle.dumps(message))

    def end(self) -> None:
        """Kill all children, and reap them for END_SECONDS at most."""
        until = time.monotonic() + END_SECONDS
        for pid in self._names:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while time.monotonic() < until:
                _kill(_children())
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    time.sleep(REAP_SECONDS)


def main(descriptor: int) -> NoReturn:
    """Serve the worker at the other end of `descriptor`, and end with it."""
    for number in signal.valid_signals() - FAULTS - HELD:
        # Of a terminal or a service manager to all processes of the worker, or of a child to its parent: the worker
        # decides when this one ends.
        signal.signal(number, signal.SIG_IGN)
    adopt_orphans()
    # At the worker's death a wake, and no end: what the children have started would be left without its reaper.
    die_with_parent(signal.SIGCHLD)
    # What the children share with this process is not copied for the sake of a search for cycles.
    gc.freeze()
    nursery = Nursery(socket.socket(fileno=descriptor))
    try:
        nursery.serve()
    finally:
        nursery.end()
        os._exit(0)


def _become(
    nursery: int, setting: Setting, descriptors: list[int], ours: tuple[socket.socket, ...]
) -> NoReturn:
    """In the fork: become a child, in a session and process group of its own."""
    code = 1
    try:
        os.setsid()
        die_with_parent(parent=nursery)
        # A process that its parent leaves while the attempt runs is the attempt's, and counts as left by it.
        adopt_orphans()
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - ERRORS:
            if signal.getsignal(number) not in (signal.SIG_DFL, None):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for our in ours:
            our.close()
        link, board, output = descriptors
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for each in (null, output):
            os.close(each)
        # No file of the worker's is open here but these.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        code = child.main(socket.socket(fileno=link), board, setting)
    except BaseException:  # noqa: BLE001 - whatever it is, this process ends, and its output says why
        traceback.print_exc()
    finally:
        os._exit(code)


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):  # it has ended, or has become another user's
            os.kill(pid, signal.SIGKILL)


def _children() -> Iterator[int]:
    """The process ids of the living children of this process, those it has adopted among them."""
    try:
        yield from map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    except (
        FileNotFoundError
    ):  # a kernel without CONFIG_PROC_CHILDREN: groups are killed, orphans beyond them are not
        return
