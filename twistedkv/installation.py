"""Putting a received snapshot in place of the state: in the database, in memory, in the log, in this order.

At every moment a crash leaves the old state or the new one, whole. The rows replace those of the database in one
transaction, which is made durable, and the state in memory follows at once; then the log says that it begins behind the
snapshot. A crash between the two leaves a database that is ahead of its log, with a mark from which the next start
knows why: :func:`finish_installation`.

Source: etcd ``server/etcdserver/server.go`` (applySnapshot), which swaps a file instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twistedkv.apply import META_INSTALLED
from twistedkv.applying import Applying
from twistedkv.compaction import Sweeper
from twistedkv.errors import InvariantError
from twistedkv.incoming import IncomingSnapshots
from twistedkv.logwriter import LogWriter
from twistedkv.raft.messages import HardState, Ready, Snapshot, SnapshotMeta
from twistedkv.restore import Loaded, read_snapshot
from twistedkv.statekeeper import StateKeeper
from twistedkv.storage.backend import Backend, BackendError
from twistedkv.storage.wal import WAL, DiskFullError, Recovered

RETRY_S: Final = 5.0  # after the database refused

_log = Logger()


class Installation:
    """Installs snapshots, one at a time, while nothing else is applied.

    Args:
        incoming: has the file.
        applying: is interrupted.
        state: has the database.
        writer: has the log.
        sweeper: holds still.
        clock: for trying again.
        marks: records that belong to this member's database, whatever is in it.
        load: reads the state of a database into memory. Blocks.
    """

    def __init__(
        self,
        incoming: IncomingSnapshots,
        applying: Applying,
        state: StateKeeper,
        writer: LogWriter,
        sweeper: Sweeper,
        clock: IReactorTime,
        marks: Mapping[bytes, bytes],
        load: Callable[[Backend], Loaded],
    ) -> None:
        self.busy = False
        self.count = 0  # of those that were installed
        self._incoming = incoming
        self._applying = applying
        self._state = state
        self._writer = writer
        self._sweeper = sweeper
        self._clock = clock
        self._marks = marks
        self._load = load
        self._retry: Deferred[None] | None = None
        self._stopped = False

    def stop(self) -> None:
        """Try nothing again. What the database is at it ends."""
        self._stopped = True
        if self._retry is not None:
            self._retry.cancel()

    async def install(self, ready: Ready, snapshot: Snapshot, take: Callable[[Loaded], None]) -> None:
        """Make ``snapshot`` durable with what else is in ``ready``.

        A database that refuses, and a log without room, are asked again until they do not, or until :meth:`stop`.

        Args:
            take: takes the state into memory, in the turn in which the database is known to have it.

        Raises:
            BackendError: the member stops.
            InvariantError: Raft took a snapshot whose database is not here.
            WALError: the log cannot be written.
        """
        self.busy = True
        self._sweeper.hold()
        meta = snapshot.meta
        path = self._incoming.take(meta.index)
        if path is None:
            raise InvariantError(f"Raft took a snapshot at {meta.index} whose database is not here")
        await self._applying.interrupt()
        while True:
            try:
                await self._state.flush()
                if self._stopped:
                    return
                loaded: Loaded = await self._state.replace(self._replace, path, snapshot)
                break
            except (BackendError, OSError) as error:
                if self._stopped:
                    raise
                _log.error("cannot install a snapshot, trying again: {error}", error=error)
            await self._pause()
        if self._stopped:
            return
        self._applying.restored(meta.index, meta.term)
        take(loaded)
        self._state.restored()
        self._sweeper.restored(loaded.compaction_done)
        while True:
            try:
                await self._writer.run(partial(_begin_log_behind, meta, ready))
                break
            except DiskFullError as error:
                _log.error("cannot begin the log behind a snapshot, trying again: {error}", error=error)
            await self._pause()
            if self._stopped:
                return
        self._incoming.delete(path)
        self.count += 1
        self.busy = False
        _log.info("installed the snapshot at index {index}", index=meta.index)

    def _replace(self, backend: Backend, path: Path, snapshot: Snapshot) -> Loaded:
        """On the storage thread: all of it or nothing, durable."""
        marks = {**self._marks, META_INSTALLED: b"%d" % snapshot.meta.index}
        with read_snapshot(path, snapshot, marks) as batches:
            backend.replace(batches)
        backend.sync()
        return self._load(backend)

    async def _pause(self) -> None:
        retry = self._retry = Deferred[None]()
        retry.addErrback(lambda _: None)  # cancelled by stop(): the next attempt tells
        call = self._clock.callLater(RETRY_S, retry.callback, None)
        try:
            await retry
        finally:
            self._retry = None
            if call.active():
                call.cancel()


def _begin_log_behind(meta: SnapshotMeta, ready: Ready, wal: WAL) -> None:
    """On the log's thread: the state of ``meta`` is in the database, what comes before it is needed no more.

    A full disk may end this in the middle; all of it may be done again.
    """
    if ready.hard_state is not None:
        wal.append(ready.hard_state, ())
    wal.save_snapshot(meta)
    wal.release(meta.index)
    if ready.entries:
        wal.append(None, ready.entries)


def finish_installation(wal: WAL, recovered: Recovered, installed: int, meta: SnapshotMeta) -> bool:
    """Have the log begin behind a snapshot whose installation a crash has cut off; whether that was so. Blocks.

    Args:
        recovered: what the log holds.
        installed: the index of the last snapshot that the database was replaced by; 0 if there was none.
        meta: the state of the database, which is that snapshot's if nothing was applied since.

    Raises:
        InvariantError: the database went on, and the log knows nothing of it.
    """
    if installed <= recovered.snapshot.index:
        return False
    if meta.index != installed:
        raise InvariantError(f"a snapshot at {installed} was installed, and the database is at {meta.index}")
    _log.info("the log begins behind the snapshot at {index}, which was being installed", index=installed)
    state = recovered.hard_state
    if state.term < meta.term:  # the leader's term was to be noted next; nobody was told anything in between
        wal.append(HardState(meta.term, 0, meta.index), ())
    wal.save_snapshot(meta)
    return True
