"""What a machine keeps when a process on it dies, and what it loses when its power is cut.

The log is the real one, on real files, over a :class:`SimulatedDisk`, whose syncs cost nothing and whose writes can be
torn at any sector, refused for want of room, or lost by a failing sync. The database is the one in memory, of which a
power cut takes a part of what was not synced: always the last transactions, never one before another one that stays.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests.simulation.clock import PowerCut, ProcessTime
from twistedkv.storage.backend import BackendError, Batch
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.wal import Disk

SECTOR_BYTES = 512
SEGMENT_BYTES = 16 * 1024  # of the log; small, so that segments begin and go often
QUICK_S = 0.0002  # for a sync, or a transaction
NOTICEABLE_S = 0.01  # from this on a sync on the reactor's thread keeps the process from everything else


@dataclass
class Condition:
    """How well the disks of a machine do."""

    log_sync_s: float = QUICK_S
    log_full: bool = False
    database_s: float = QUICK_S
    database_refuses: bool = False


class SimulatedDisk(Disk):
    """The disk of one process' log.

    Args:
        random: dice.
        cut: called when the power goes in the middle of a write.
        wait: stops the process while the disk works, if it works on the reactor's thread.
    """

    def __init__(self, random: Random, cut: Callable[[], None], wait: Callable[[float], None]) -> None:
        self.full = False
        self.broken = False  # syncs fail, and nobody knows what was written
        self.sync_s = QUICK_S
        self.behind = False  # it is the log's own thread that waits now
        self.cut_in: int | None = None  # so many writes and syncs until the power goes
        self._random = random
        self._cut = cut
        self._wait = wait
        self.gone = False  # with its process

    def write(self, fd: int, parts: Sequence[Any], offset: int) -> int:  # type: ignore[override]
        """Write, in part or not at all if that is how it is."""
        if self.gone:
            raise PowerCut
        if not (self.full or self.broken or self.cut_in):
            return os.pwritev(fd, parts, offset)
        data = b"".join(parts)
        if self.full and any(data):  # zeros go where the file has room already
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._is_cut():
            self._write_some(fd, data, offset)
            self._end()
        if self.broken:
            self._write_some(fd, data, offset)
            return len(data)
        return os.pwrite(fd, data, offset)

    def sync_data(self, fd: int) -> None:  # type: ignore[override]
        """Have what was written survive; it takes its time."""
        self.sync(fd)
        if not self.behind and self.sync_s >= NOTICEABLE_S:
            self._wait(self.sync_s)

    def sync(self, fd: int) -> None:  # type: ignore[override]
        """See :meth:`sync_data`; for what happens seldom enough not to count its time."""
        if self.gone:
            raise PowerCut
        if self._is_cut():
            self._end()
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def allocate(self, fd: int, size: int) -> None:
        """Make room for a segment."""
        if self.gone:
            raise PowerCut
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._is_cut():
            self._end()
        os.ftruncate(fd, min(size, SEGMENT_BYTES))  # the rest comes when it is written; what is read is what is there

    def _is_cut(self) -> bool:
        if self.cut_in is None:
            return False
        self.cut_in -= 1
        return self.cut_in <= 0

    def _end(self) -> None:
        self.gone = True
        self._cut()
        raise PowerCut

    def _write_some(self, fd: int, data: bytes, offset: int) -> None:
        """Each sector of ``data`` gets to the disk, or does not; mostly the first ones do."""
        random = self._random
        kept = random.choice([0.0, 0.3, 0.9, 1.0])
        position = 0
        while position < len(data):
            end = position + SECTOR_BYTES - (offset + position) % SECTOR_BYTES
            if random.random() >= kept:
                if random.random() < 0.8:
                    return
            else:
                os.pwrite(fd, data[position:end], offset + position)
            position = end


class SimulatedDatabase(MemoryBackend):
    """A database in memory that knows which of its transactions a power cut may take."""

    def __init__(self) -> None:
        super().__init__()
        self.refusing = False
        self._durable = MemoryBackend()
        self._unsynced: list[Callable[[MemoryBackend], Any]] = []

    def write(self, batch: Batch) -> None:
        """See :class:`~twistedkv.storage.backend.Backend`."""
        if self.refusing:
            raise BackendError("simulated: the database is read-only")
        super().write(batch)
        self._unsynced.append(partial(_write, batch))

    def replace(self, batches: Iterable[Batch]) -> None:
        """See :class:`~twistedkv.storage.backend.Backend`."""
        if self.refusing:
            raise BackendError("simulated: the database is read-only")
        collected = list(batches)
        super().replace(collected)
        self._unsynced.append(lambda database: database.replace(collected))

    def compact(self, compacted: int, after: int, limit: int) -> tuple[int, int]:
        """See :class:`~twistedkv.storage.backend.Backend`."""
        if self.refusing:
            raise BackendError("simulated: the database is read-only")
        result = super().compact(compacted, after, limit)
        self._unsynced.append(lambda database: database.compact(compacted, after, limit))
        return result

    def sync(self) -> None:
        """See :class:`~twistedkv.storage.backend.Backend`."""
        if self.refusing:
            raise BackendError("simulated: the database cannot be synced")
        self._sync(len(self._unsynced))

    def after_crash(self, random: Random, power_cut: bool) -> SimulatedDatabase:
        """The database as the next process finds it."""
        kept = random.randrange(len(self._unsynced) + 1) if power_cut else len(self._unsynced)
        found = SimulatedDatabase()
        found._durable = self._durable
        self._sync(kept)
        found._copy(self._durable)
        self._durable = MemoryBackend()  # what the dead process has a hold of leads nowhere
        return found

    def _sync(self, count: int) -> None:
        for change in self._unsynced[:count]:
            change(self._durable)
        del self._unsynced[:count]

    def _copy(self, other: MemoryBackend) -> None:
        self._revisions = list(other._revisions)
        self._rows = dict(other._rows)
        self._by_key = type(other._by_key)({key: list(revisions) for key, revisions in other._by_key.items()})
        self._records = {bucket: dict(records) for bucket, records in other._records.items()}
        self._data_bytes = self._held_bytes = other._data_bytes


def _write(batch: Batch, database: MemoryBackend) -> None:
    database.write(batch)


class SimulatedWorker:
    """A :class:`~twistedkv.storage.worker.StorageWorker` whose thread is as quick as its disk is.

    Each call has its effect at the moment when it begins or at the moment when it ends, as the dice say.

    Args:
        time: the process'.
        random: dice.
        duration_s: how long the next call takes.
        around: called with true before and with false after each call.
    """

    def __init__(
        self, time: ProcessTime, random: Random, duration_s: Callable[[], float], around: Callable[[bool], None]
    ) -> None:
        self._time = time
        self._random = random
        self._duration_s = duration_s
        self._around = around
        self._jobs: deque[_Job] = deque()

    def run(self, blocking: Callable[..., Any], *args: Any, **named: Any) -> Deferred[Any]:
        """See :class:`~twistedkv.storage.worker.StorageWorker`."""
        job = _Job(partial(blocking, *args, **named))
        if self._time.dead:
            return job.outcome
        self._jobs.append(job)
        if len(self._jobs) == 1:
            self._begin()
        return job.outcome

    def crash(self) -> None:
        """The process died: what the thread was doing was done, or was not."""
        if self._jobs and self._random.random() < 0.5:
            self._do(self._jobs[0])
        self._jobs.clear()

    def _begin(self) -> None:
        job = self._jobs[0]
        if self._random.random() < 0.5:
            self._do(job)
        # The end of a process' last write is the machine's affair, not a call that the process has planned.
        self._time.from_outside(self._duration_s(), self._end)

    def _end(self) -> None:
        job = self._jobs.popleft()
        self._do(job)
        if self._time.dead:
            return
        if self._jobs:
            self._begin()
        job.deliver()

    def _do(self, job: _Job) -> None:
        self._around(True)
        try:
            job.do()
        finally:
            self._around(False)


class _Job:
    """One call on the thread."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.outcome: Deferred[Any] = Deferred(self._cancel)
        self._call = call
        self._done = False
        self._cancelled = False
        self._result: Any = None

    def do(self) -> None:
        """Carry it out, unless that has happened."""
        if self._done or self._cancelled:
            return
        self._done = True
        try:
            self._result = self._call()
        except BaseException:
            self._result = Failure()

    def deliver(self) -> None:
        """Tell the process."""
        if self._cancelled:
            return
        if isinstance(self._result, Failure):
            self.outcome.errback(self._result)
        else:
            self.outcome.callback(self._result)

    def _cancel(self, _: Deferred[Any]) -> None:
        self._cancelled = True
