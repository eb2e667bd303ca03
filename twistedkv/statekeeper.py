"""The replicated state's way into the database and back: what was applied goes there behind everybody's back.

With every batch of changes goes the index that they stand for, in one transaction, so that after a crash the log is
replayed from exactly there (the lesson of etcd's issue 13766).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.apply import META_APPLIED_INDEX, META_APPLIED_TERM
from twistedkv.metrics import Metrics
from twistedkv.storage.backend import Backend, BackendError, Batch, Bucket, Size
from twistedkv.storage.mvcc import Loan, Need, Store, fetch
from twistedkv.storage.worker import StorageWorker
from twistedkv.storage.writebehind import WriteBehind
from twistedkv.v2records import DirectoryRecords

BACKLOG_ROWS = 50_000  # rows that may wait for the database before applying waits too
BACKLOG_BYTES = 64 << 20
STOP_FLUSH_S = 10.0  # for a database that takes no writes; all of it is in the log as well

_log = Logger()


class StateKeeper:
    """Writes the store's changes behind, and reads what memory does not hold.

    Args:
        store: what is kept.
        v2: what else is.
        backend: the open database.
        worker: the thread that owns it.
        applied: index and term of the last entry that the store has.
        clock: for delays.
        metrics: what each transaction took is counted there.
        halt: called when the database fails in a way that is our own fault.
    """

    def __init__(
        self,
        store: Store,
        v2: DirectoryRecords,
        backend: Backend,
        worker: StorageWorker,
        applied: Callable[[], tuple[int, int]],
        clock: IReactorTime,
        metrics: Metrics,
        halt: Callable[[Failure], None],
    ) -> None:
        self._store = store
        self._v2 = v2
        self._backend = backend
        self._worker = worker
        self._applied = applied
        self._clock = clock
        self._told_rows = self._told_bytes = 0  # how much of the store's batch the write-behind knows of
        self._replacing = False  # the database is not the store's any more
        self._write_behind = WriteBehind(backend, worker, self._take_batch, clock, halt)
        self._write_behind.on_commit = metrics.backend_commit.observe

    @property
    def failing(self) -> str | None:
        """Why the database takes no writes at the moment, or None."""
        return self._write_behind.failing

    @property
    def backlog_bytes(self) -> int:
        """What is on its way to the database."""
        return self._write_behind.backlog_bytes

    @property
    def behind(self) -> bool:
        """Whether so much is on its way that nothing more should be applied for now."""
        return self._write_behind.backlog_rows > BACKLOG_ROWS or self.backlog_bytes > BACKLOG_BYTES

    def changed(self) -> None:
        """The store may have changed: have it written soon. Called once a batch."""
        batch, v2 = self._store.batch, self._v2
        if batch or v2.pending:
            rows, size = len(batch.rows) + v2.pending, self._store.batch_bytes + v2.pending_bytes
            self._write_behind.dirty(rows - self._told_rows, size - self._told_bytes)
            self._told_rows, self._told_bytes = rows, size

    def record_applied(self) -> None:
        """Have the next :meth:`flush` write the applied index even if nothing else is to be written."""
        index, term = self._applied()
        self._store.record(Bucket.META, META_APPLIED_INDEX, b"%d" % index)
        self._store.record(Bucket.META, META_APPLIED_TERM, b"%d" % term)

    def flush(self) -> Deferred[None]:
        """Fires when everything applied so far is in the database."""
        return self._write_behind.flush()

    def fetch(self, needs: Sequence[Need]) -> Deferred[Loan]:
        """Read from the database what the store does not hold."""
        return self._write_behind.read(fetch, self._backend, needs)

    def read(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Run ``function(backend, *arguments)`` on the storage thread, after everything applied so far was written."""
        return self._write_behind.read(function, self._backend, *arguments)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Run ``function(backend, *arguments)`` on the storage thread, after what was asked of it before."""
        return self._worker.run(function, self._backend, *arguments)

    def measure(self) -> Deferred[Size]:
        """How large the database is."""
        return self._worker.run(self._backend.size)

    def make_durable(self) -> Deferred[None]:
        """Bring the database up to what is applied now, and sync it."""
        self.record_applied()
        return self._write_behind.read(self._backend.sync)

    def replace(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """As :meth:`run`, for a function that puts another state into the database.

        From now on nothing of this store is written there, not even by :meth:`stop`, until :meth:`restored`. To be
        called after a :meth:`flush`; if the function fails, it is to be run again.
        """
        self._replacing = True
        return self.run(function, *arguments)

    def restored(self) -> None:
        """The database was replaced, and the store with it; nothing is on its way there."""
        self._replacing = False
        self._told_rows = self._told_bytes = 0

    async def stop(self) -> None:
        """Bring the database up to what is applied, if it takes that in time, and write nothing more."""
        self.record_applied()
        try:
            await self._write_behind.flush().addTimeout(STOP_FLUSH_S, self._clock)
        except (BackendError, TimeoutError) as error:
            _log.warn("the database is behind, the next start reads the rest from the log: {error}", error=error)
        self.abandon()

    def abandon(self) -> None:
        """Begin no further write; what is missing is in the log."""
        self._write_behind.stop()

    def _take_batch(self) -> Batch:
        if self._replacing:
            return Batch()
        self._v2.drain(self._store.record)
        if self._store.batch:
            self.record_applied()
        self._told_rows = self._told_bytes = 0
        return self._store.take_batch()
