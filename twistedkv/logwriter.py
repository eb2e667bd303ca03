"""Writing the Raft log: on the reactor's thread while the disk is quick, on the log's own thread when it is not.

One thing at a time happens to the log. While something does, :attr:`LogWriter.busy` is true and the drive loop waits;
what is proposed meanwhile becomes the next batch. A full disk keeps its batch and tries again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.metrics import Metrics
from twistedkv.raft.messages import HardState, Ready
from twistedkv.storage.wal import WAL, DiskFullError, WALError
from twistedkv.storage.worker import StorageWorker

INLINE_SYNC_S = 0.002  # a disk slower than this on average is never waited for on the reactor's thread
RETRY_S = 0.5
_SMOOTHING = 0.1  # weight of the last sync in the average

_log = Logger()


class LogWriter:
    """The log, driven by the reactor's thread.

    Args:
        wal: the open log.
        worker: the thread that may block on it.
        clock: for trying again.
        metrics: what each sync took is counted there.
        idle: called when :attr:`busy` has turned false by itself.
        halt: called when the log cannot be used any more.
    """

    def __init__(
        self,
        wal: WAL,
        worker: StorageWorker,
        clock: IReactorTime,
        metrics: Metrics,
        idle: Callable[[], None],
        halt: Callable[[Failure], None],
    ) -> None:
        self.busy = False
        self.full = False  # the disk has no room
        self.average_sync_s = 0.0
        self._wal = wal
        self._worker = worker
        self._clock = clock
        self._metrics = metrics
        self._idle = idle
        self._halt = halt
        self._last_sync_s = 0.0
        self._jobs: deque[tuple[Callable[[WAL], None], Deferred[None]]] = deque()
        self._retry: IDelayedCall | None = None
        self._stopped = False
        wal.on_sync = self._on_sync

    @property
    def bytes_written(self) -> int:
        """Bytes written to the log since it was opened."""
        return self._wal.bytes_written

    def append(self, ready: Ready, durable: Callable[[Ready], None]) -> bool:
        """Make the entries and the hard state of ``ready`` durable.

        Returns:
            True if they are now. Else ``durable`` is called with ``ready`` when they are; the log is busy until then.
        """
        if self.average_sync_s < INLINE_SYNC_S:
            try:
                self._wal.append(ready.hard_state, ready.entries)
            except DiskFullError as error:
                self._wait_for_room(ready, durable, error)
                return False
            self._learn()
            return True
        self._append_behind(ready, durable)
        return False

    def note(self, hard_state: HardState) -> None:
        """Write a commit index with whatever is written next; it need not be durable. Not while the log is busy."""
        self._wal.append(hard_state, (), sync=False)

    def run(self, job: Callable[[WAL], None]) -> Deferred[None]:
        """Run ``job`` on the log's thread when nothing else happens to the log; it may block."""
        done: Deferred[None] = Deferred()
        self._jobs.append((job, done))
        if not self.busy:
            self._next_job()
        return done

    async def stop(self) -> None:
        """Let the disk finish what it is doing, and close the log."""
        self.abandon()
        try:
            await self._worker.run(self._wal.close)
        except WALError as error:  # it is closed all the same; what it lacks is a commit index, which others know too
            _log.warn("the log was closed without its last commit index: {error}", error=error)

    def abandon(self) -> None:
        """Begin nothing more."""
        self._stopped = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _append_behind(self, ready: Ready, durable: Callable[[Ready], None]) -> None:
        self._retry = None
        self.busy = True

        def appended(_: None) -> None:
            self.full = False
            self._learn()
            if not self._stopped:
                self.busy = False
                self._next_job()  # before the next batch: under load there always is one
                durable(ready)

        def failed(failure: Failure) -> None:
            if isinstance(failure.value, DiskFullError):
                self._wait_for_room(ready, durable, failure.value)
            else:
                self._halt(failure)

        appending = self._worker.run(self._wal.append, ready.hard_state, ready.entries)
        appending.addCallbacks(appended, failed).addErrback(self._halt)

    def _wait_for_room(self, ready: Ready, durable: Callable[[Ready], None], error: DiskFullError) -> None:
        if not self.full:
            _log.error("writes wait: {error}", error=error)
        self.full = self.busy = True
        if not self._stopped:
            self._retry = self._clock.callLater(RETRY_S, self._append_behind, ready, durable)

    def _next_job(self) -> None:
        if self.busy or not self._jobs:
            return
        job, done = self._jobs.popleft()
        self.busy = True

        def over(result: Any) -> Any:
            self.busy = False
            if not self._stopped:
                self._next_job()
                self._idle()
            return result

        self._worker.run(job, self._wal).addBoth(over).chainDeferred(done)

    def _on_sync(self, seconds: float) -> None:
        """On whichever thread waited for the disk; looked at when the reactor's thread knows that it is done."""
        self._last_sync_s = seconds

    def _learn(self) -> None:
        taken_s = self._last_sync_s
        self._metrics.wal_fsync.observe(taken_s)
        self.average_sync_s += (min(taken_s, 1.0) - self.average_sync_s) * _SMOOTHING
