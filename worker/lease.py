"""Renews a worker's lease from a thread, so that a pipeline that blocks the event loop does not lose it at once.

The thread renews only while the event loop ticks. The process ends itself after two leases without a tick, because
its attempts run elsewhere by then.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
import structlog

from engine.process.ending import leave
from engine.storage.connections import connect_sync
from engine.storage.faults import by_blame, told
from engine.tables import workers
from engine.tables.workers import Leased, Registration
from engine.telemetry.metrics import HEARTBEATS, LEASES_LOST
from engine.telemetry.throughput import Throughput

BEATS_PER_LEASE: Final = 3
"""One heartbeat may fail, and the next one still arrives before the lease expires."""
MIN_GAP_SECONDS: Final = 0.05
"""Limits the heartbeats when many cancellations ask for one."""
MIN_CONNECT_SECONDS: Final = 2
"""The least that libpq takes. A connection that hangs must not take up the time in which a lease can be renewed."""
LAST_WORDS_SECONDS: Final = 1.0
"""How long the last log line of a stalled process may take."""

log = structlog.get_logger()


class Lease:
    """The worker's row in `workers`. The thread owns the connection.

    `on_beat(sent, leased)` is called on the event loop after each acknowledged heartbeat; `sent` is the monotonic
    time at which the heartbeat was sent, and `leased` is None if the attempts under the lease could not be read.
    `running()` names the running attempts, for the log.
    """

    def __init__(
        self,
        url: str,
        worker: Registration,
        seconds: float,
        *,
        on_beat: Callable[[float, Leased | None], None],
        running: Callable[[], Sequence[str]],
        throughput: Throughput,
    ) -> None:
        self.seconds = seconds
        self._url = url
        self._worker = worker
        self._on_beat = on_beat
        self._running = running
        self._throughput = throughput
        self._loop = asyncio.get_running_loop()
        self._id: int | None = None
        self._acknowledged = 0.0
        self.period = seconds / BEATS_PER_LEASE
        """Seconds from one heartbeat to the next."""
        self._failing: Exception | None = None
        self._unread: Exception | None = None
        """Why the attempts could not be read."""
        self._ticks = 0
        self._seen = -1
        self._silent = 0.0
        self._turned = time.monotonic()
        self._stopping = threading.Event()
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    @property
    def worker_id(self) -> int | None:
        """The id under which to claim and record; None unless the lease certainly holds.

        A lease counts from the sending of its heartbeat, so it expires here before it expires in the database.
        """
        if time.monotonic() < self._acknowledged + self.seconds:
            return self._id
        return None

    def start(self) -> None:
        self._thread.start()

    def tick(self) -> None:
        """Prove that the event loop is alive."""
        self._ticks += 1

    def beat_now(self) -> None:
        """Send a heartbeat now: its answer names the attempts whose cancellation was requested."""
        self._due.set()

    def abandon(self, worker_id: int) -> None:
        """Give up the lease of this id, if it is the present one. The next heartbeat registers a new id."""
        if self._id == worker_id:
            self._id = None
            LEASES_LOST.inc()
            self._due.set()

    def close(self) -> None:
        """Stop renewing and remove the row. Blocks as long as one statement takes, and at most for a lease."""
        self._stopping.set()
        self._due.set()
        self._thread.join(timeout=self.seconds)

    def _renew(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._connected() as conn:
                    while not self._stopping.is_set():
                        # A silent event loop must lose its lease, so that other workers get its jobs.
                        if self._silence() < self.seconds:
                            self._beat(conn)
                        self._wait()
                    self._deregister(conn)
            except Exception as error:  # noqa: BLE001 - a worker whose lease thread has died can never claim again
                HEARTBEATS.labels("failed").inc()
                if not told(self._failing, error):  # once per outage
                    log_at = by_blame(log, error)
                    log_at("heartbeat.failed")
                self._failing = error
                # A stalled event loop must end the process during an outage, too.
                self._silence()
                self._stopping.wait(min(1.0, self.period / 2))

    def _silence(self) -> float:
        """Seconds without a tick of the event loop. Ends the process after two leases without a tick.

        One turn of this thread counts for at most one period: a process that was suspended and resumed finds much
        time gone, although its event loop is healthy.
        """
        now = time.monotonic()
        turn = min(now - self._turned, self.period)
        self._turned = now
        self._silent = self._silent + turn if self._ticks == self._seen else 0.0
        self._seen = self._ticks
        if self._silent >= 2 * self.seconds:
            try:
                # The timer ends the process if the log is what blocks it.
                threading.Timer(LAST_WORDS_SECONDS, leave, [1]).start()
                log.error("process.stalled", seconds=2 * self.seconds, running=list(self._running()))
            finally:
                leave(1)
        return self._silent

    def _connected(self) -> psycopg.Connection[Any]:
        # A heartbeat that hangs must fail early enough for another one on a new connection. The attempts are read in
        # what is left of a period, so that a lock on the outbox delays the next heartbeat by half a period at most.
        limit = max(1000, int(self.period * 1000))
        lock = max(1, int(self.period * 500))
        return connect_sync(
            self._url,
            name="lease",
            more={"statement_timeout": str(limit), "lock_timeout": str(lock)},
            tcp_user_timeout=limit,
            connect_timeout=max(MIN_CONNECT_SECONDS, limit // 1000),
        )

    def _beat(self, conn: psycopg.Connection[Any]) -> None:
        sent = time.monotonic()
        worker_id = self._id
        if worker_id is None:
            self._id = workers.register(conn, self._worker, self.seconds)
            log.info("worker.registered", worker=self._id, name=self._worker.name)
        elif not workers.beat(conn, worker_id, self.seconds, self._throughput.per_second()):
            # The row is gone: maintenance has lapsed this lease.
            HEARTBEATS.labels("gone").inc()
            self.abandon(worker_id)
            return
        HEARTBEATS.labels("renewed").inc()
        if self._failing is not None:
            log.info("heartbeat.recovered", worker=self._id)
        self._failing = None
        # Before the attempts are read: that may take long, and the lease holds meanwhile.
        self._acknowledged = sent
        self._post(sent, {} if worker_id is None else self._leased(conn, worker_id))

    def _leased(self, conn: psycopg.Connection[Any], worker_id: int) -> Leased | None:
        """The attempts under the lease. None if they cannot be read: the lease is renewed all the same."""
        try:
            leased = workers.leased(conn, worker_id)
        except psycopg.Error as error:
            if not told(self._unread, error):
                log_at = by_blame(log, error)
                log_at("attempts.unread")
            self._unread = error
            return None
        self._unread = None
        return leased

    def _post(self, sent: float, leased: Leased | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._on_beat, sent, leased)
        except RuntimeError:
            # The event loop has closed, so no attempt needs the lease any more.
            self._stopping.set()

    def _wait(self) -> None:
        self._due.wait(self.period)
        self._stopping.wait(MIN_GAP_SECONDS)
        self._due.clear()

    def _deregister(self, conn: psycopg.Connection[Any]) -> None:
        if self._id is not None:
            workers.deregister(conn, self._id)
