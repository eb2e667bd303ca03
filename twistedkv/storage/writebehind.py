"""Writing behind: the store's buffer goes to the database soon, in large batches, in order, without loss.

Nothing waits for the database but what asks for it by :meth:`WriteBehind.flush` or :meth:`WriteBehind.read`. A batch
that the database refuses is tried again before any later one. Runs on the reactor's thread; blocking is the worker's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import ParamSpec, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.storage.backend import Backend, BackendError, Batch
from twistedkv.storage.worker import StorageWorker

P = ParamSpec("P")
T = TypeVar("T")

DELAY_S = 1.0  # the longest that a change waits in the buffer
FULL_ROWS = 10_000  # as many are written at once
RETRY_FIRST_S = 0.1
RETRY_LONGEST_S = 5.0
STOPPED = "the storage is stopped"

_log = Logger()


class WriteBehind:
    """Moves batches from the store to the backend.

    Args:
        backend: written on ``worker`` only.
        worker: the storage thread.
        take: swaps the store's buffer for an empty one and returns what was in it.
        clock: for delays.
        halt: told when a write fails in a way that is no :class:`BackendError`: that is our own fault, trying again
            would not help, and nothing more is written.
    """

    def __init__(
        self,
        backend: Backend,
        worker: StorageWorker,
        take: Callable[[], Batch],
        clock: IReactorTime,
        halt: Callable[[Failure], None],
    ) -> None:
        self._backend = backend
        self._worker = worker
        self._take = take
        self._clock = clock
        self._halt = halt
        self.failing: str | None = None  # why the last try was refused; None while all goes well
        self.on_commit: Callable[[float], None] | None = None  # told how many seconds each transaction took
        self._buffer = _Load()  # in the store's buffer
        self._taken: Batch | None = None  # out of the buffer, not yet in the database
        self._taken_load = _Load()
        self._delay: IDelayedCall | None = None  # runs from the first dirty() on; None: the buffer is clean or due
        self._due = False  # the delay is over
        self._retry: IDelayedCall | None = None
        self._retry_s = RETRY_FIRST_S
        self._stopped = False
        self._wait_for_taken: list[Deferred[None]] = []  # fire when _taken is written
        self._wait_for_buffer: list[Deferred[None]] = []  # fire when what is in the buffer now is written

    @property
    def backlog_rows(self) -> int:
        """Rows that are not in the database yet."""
        return self._buffer.rows + self._taken_load.rows

    @property
    def backlog_bytes(self) -> int:
        """Their bytes, as told to :meth:`dirty`."""
        return self._buffer.size_bytes + self._taken_load.size_bytes

    def dirty(self, rows: int, size_bytes: int) -> None:
        """The store's buffer got ``rows`` more rows of ``size_bytes``; 0 for records alone. Call it once a turn."""
        self._buffer.rows += rows
        self._buffer.size_bytes += size_bytes
        if self._stopped:
            return
        if self._buffer.rows >= FULL_ROWS:
            self._write_if_due()
        elif self._delay is None and not self._due:
            self._delay = self._clock.callLater(DELAY_S, self._delay_over)

    def flush(self) -> Deferred[None]:
        """Fires when everything in the buffer now is in the database. Cancelling it stops the waiting only.

        It waits for as long as the database refuses: bound it where that matters. Fails with :class:`BackendError`
        when :meth:`stop` is called meanwhile.
        """
        if self._stopped:
            return fail(BackendError(self.failing or STOPPED))
        written: Deferred[None] = Deferred(self._forget)
        self._wait_for_buffer.append(written)
        self._write_if_due()
        return written

    def read(self, question: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run ``question`` on the worker when everything in the buffer now is in the database; in order of asking."""
        return self.flush().addCallback(lambda _: self._worker.run(question, *args, **kwargs))

    def stop(self) -> None:
        """Start no further write; whoever still waits is told so. The Raft log has what was not written."""
        self._stopped = True
        for timer in (self._delay, self._retry):
            if timer is not None:
                timer.cancel()
        self._delay = self._retry = None
        waiting = self._wait_for_taken + self._wait_for_buffer
        self._wait_for_taken, self._wait_for_buffer = [], []
        for written in waiting:
            written.errback(BackendError(self.failing or STOPPED))

    def _delay_over(self) -> None:
        self._delay = None
        self._due = True
        self._write_if_due()

    def _write_if_due(self) -> None:
        """Take the buffer and write it, if someone waits for it, unless another batch is on its way."""
        wanted = self._due or self._wait_for_buffer or self._buffer.rows >= FULL_ROWS
        if not wanted or self._taken is not None or self._stopped:
            return
        if self._delay is not None:
            self._delay.cancel()
            self._delay = None
        self._due = False
        self._taken = self._take()
        self._taken_load, self._buffer = self._buffer, _Load()
        self._wait_for_taken, self._wait_for_buffer = self._wait_for_buffer, []
        self._try(self._taken)

    def _try(self, batch: Batch) -> None:
        self._retry = None
        if batch:
            writing = self._worker.run(self._write, batch)
            writing.addCallbacks(self._committed, self._refused, errbackArgs=(batch,))
            writing.addErrback(self._give_up)
        else:
            self._written(None)

    def _write(self, batch: Batch) -> float:
        """On the worker: write, and say how long that took."""
        began_s = perf_counter()
        self._backend.write(batch)
        return perf_counter() - began_s

    def _committed(self, seconds: float) -> None:
        if self.on_commit is not None:
            self.on_commit(seconds)
        self._written(None)

    def _written(self, _: None) -> None:
        self._taken, self._taken_load = None, _Load()
        self._retry_s = RETRY_FIRST_S
        if self.failing is not None:
            _log.info("the storage takes writes again")
            self.failing = None
        waited, self._wait_for_taken = self._wait_for_taken, []
        for written in waited:
            written.callback(None)
        self._write_if_due()

    def _refused(self, failure: Failure, batch: Batch) -> None:
        failure.trap(BackendError)
        reason = failure.getErrorMessage()
        if reason != self.failing:
            _log.error("the storage refuses writes, trying again: {reason}", reason=reason)
            self.failing = reason
        if not self._stopped:
            self._retry = self._clock.callLater(self._retry_s, self._try, batch)
            self._retry_s = min(self._retry_s * 2, RETRY_LONGEST_S)

    def _give_up(self, failure: Failure) -> None:
        if self._stopped:
            _log.failure("a write failed after the end", failure=failure)
            return
        self.failing = failure.getErrorMessage()
        self.stop()
        self._halt(failure)

    def _forget(self, written: Deferred[None]) -> None:
        for waiting in (self._wait_for_taken, self._wait_for_buffer):
            if written in waiting:
                waiting.remove(written)


@dataclass(slots=True)
class _Load:
    rows: int = 0
    size_bytes: int = 0
