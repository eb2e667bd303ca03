"""Keeping the Raft log short: in memory by what followers may still ask for, on disk by what the database has.

A *snapshot* here is the state itself, in the database: before a part of the log goes, the database is brought up to
date and synced, and only then the log says that a snapshot stands for that part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.logwriter import LogWriter
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import SnapshotMeta
from twistedkv.storage.wal import WAL

CATCH_UP_BYTES = 16 << 20
LOG_BYTES = 256 << 20  # of log on disk after which it is cut short, however few entries that are

_log = Logger()


class LogKeeper:
    """Decides when to cut the log short, and does it.

    Args:
        log: the log in memory.
        writer: the log on disk.
        snapshot_count: entries after which the log on disk is cut short.
        catch_up_entries: kept in memory for followers that are behind.
        make_durable: brings the database up to date and syncs it; what was applied before the call is then on disk.
    """

    def __init__(
        self,
        log: RaftLog,
        writer: LogWriter,
        snapshot_count: int,
        catch_up_entries: int,
        make_durable: Callable[[], Deferred[None]],
    ) -> None:
        self._log = log
        self._writer = writer
        self._snapshot_count = snapshot_count
        self._catch_up_entries = catch_up_entries
        self._holders = 0
        self._make_durable = make_durable
        self._snapshot_index = log.compacted  # the log on disk begins after it
        self._snapshot_bytes = 0  # written to the log by then
        self._snapshotting = False
        self._applied_bytes = 0  # of entries since the log in memory was trimmed

    def hold(self) -> None:
        """Keep the log as long as it is: a snapshot is on its way to a follower, which will ask for what follows it.

        Until as many calls of :meth:`release_hold` came. Source: etcd ``server.go``, triggerSnapshot.
        """
        self._holders += 1

    def release_hold(self) -> None:
        """The snapshot is delivered, or is not."""
        self._holders -= 1

    def restored(self) -> None:
        """The log begins anew behind a snapshot that came from the leader, in memory and on disk."""
        self._snapshot_index = self._log.compacted
        self._snapshot_bytes = self._writer.bytes_written
        self._applied_bytes = 0

    def applied(self, size_bytes: int) -> None:
        """An entry of so many bytes was applied."""
        self._applied_bytes += size_bytes

    def look(self, applied: int, describe: Callable[[], SnapshotMeta]) -> None:
        """Cut short what is too long. Called after a batch was applied.

        Args:
            applied: the index of the last entry applied.
            describe: the state as it is now, as a point of the log.
        """
        if not self._holders and (
            self._applied_bytes > CATCH_UP_BYTES or applied - self._log.compacted > 2 * self._catch_up_entries
        ):
            self.trim(applied)
        if not self._snapshotting and (
            applied - self._snapshot_index >= self._snapshot_count
            or self._writer.bytes_written - self._snapshot_bytes > LOG_BYTES
        ):
            self._release(describe())

    def trim(self, applied: int) -> None:
        """Drop from memory what no follower is likely to ask for; the log on disk stays."""
        self._applied_bytes = 0
        log = self._log
        last = min(applied, log.applied)
        first = max(last - self._catch_up_entries, log.compacted)
        kept = 0
        if last > first:
            for entry in reversed(log.slice(first + 1, last)):
                kept += len(entry.data)
                if kept > CATCH_UP_BYTES:
                    first = entry.index
                    break
        log.compact(first)

    def _release(self, meta: SnapshotMeta) -> None:
        self._snapshotting = True
        self._snapshot_bytes = self._writer.bytes_written

        def release(wal: WAL) -> None:
            wal.save_snapshot(meta)
            wal.release(meta.index)

        def durable(_: None) -> Deferred[None]:
            return self._writer.run(release)

        def done(_: Any) -> None:
            _log.info("log released up to {index}", index=meta.index)

        def failed(failure: Failure) -> None:
            # The log stays as long as it is; after as many entries it is tried again.
            _log.error("cannot release the log: {error}", error=failure.value)

        def over(_: Any) -> None:
            self._snapshot_index = meta.index
            self._snapshotting = False

        self._make_durable().addCallback(durable).addCallbacks(done, failed).addBoth(over)
