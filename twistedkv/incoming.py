"""A snapshot that the leader sends, received into a file and examined before Raft hears of it.

A file is not looked at again after a restart: the leader sends another one. What becomes of it is told in
:mod:`twistedkv.installation`. Source: etcd ``server/etcdserver/api/snap/db.go``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twistedkv.raft.messages import Message, Snapshot
from twistedkv.storage.worker import StorageWorker

DIRECTORY: Final = "incoming"  # under the data directory
MOST_WAITING: Final = 2  # files, each as large as the state; Raft goes by the last one that it has heard of

_log = Logger()


class IncomingSnapshots:
    """Receives snapshots, and keeps each one that Raft has heard of until it is taken or of no use.

    Raft may hear of a second one while a first one waits, or is being installed; either may be the one that it takes.

    Args:
        data_dir: has room for a file as large as the state.
        worker: the thread that writes and reads files.
        examine: reads a whole file and raises what is wrong with it. Blocks.
        arrived: told of a message whose database is here.
    """

    def __init__(
        self,
        data_dir: Path,
        worker: StorageWorker,
        examine: Callable[[Snapshot, Path, int | None], None],
        arrived: Callable[[Message], None],
    ) -> None:
        self._directory = data_dir / DIRECTORY
        self._worker = worker
        self._examine = examine
        self._arrived = arrived
        self._files = 0
        self.waiting: dict[int, Path] = {}  # by index: the files of those that Raft has heard of
        self.receiving = 0

    def start(self) -> None:
        """Delete what an earlier life has left."""
        self._worker.run(self._clear).addErrback(
            lambda failure: _log.warn("cannot clear {path}: {error}", path=str(self._directory), error=failure.value)
        )

    def begin(self, message: Message, crc32c: int | None) -> Receiving:
        """A snapshot begins to arrive."""
        self._files += 1
        path = self._directory / f"{self._files}.db"
        return Receiving(self, path, message, crc32c)

    def take(self, index: int) -> Path | None:
        """The file of the snapshot at ``index``, now the caller's to :meth:`delete`; ``None`` if it is not here."""
        return self.waiting.pop(index, None)

    def drop_but(self, index: int) -> None:
        """Raft has no use for those that wait, but for the one at ``index``."""
        for other in [each for each in self.waiting if each != index]:
            self.delete(self.waiting.pop(other))

    def delete(self, path: Path) -> None:
        """A file is needed no more."""
        self._worker.run(path.unlink, missing_ok=True).addErrback(
            lambda failure: _log.warn("cannot delete {path}: {error}", path=str(path), error=failure.value)
        )

    def _clear(self) -> None:
        if self._directory.is_dir():
            for path in self._directory.iterdir():
                path.unlink()


class Receiving:
    """One snapshot on its way in; see :class:`twistedkv.protocols.receiver.SnapshotSink`."""

    def __init__(self, incoming: IncomingSnapshots, path: Path, message: Message, crc32c: int | None) -> None:
        self._incoming = incoming
        self._path = path
        self._message = message
        self._crc32c = crc32c
        self._file: IO[bytes] | None = None
        self._over = False
        incoming.receiving += 1

    def write(self, chunk: bytes) -> Deferred[None]:
        """Write a part; fires when it is written, fails if there is no room."""
        return self._incoming._worker.run(self._write, chunk)

    def finish(self) -> Deferred[None]:
        """Sync and examine the whole, and tell Raft. Fails if anything is wrong with it."""
        return self._incoming._worker.run(self._finish).addCallback(self._tell)

    def abort(self) -> None:
        """Delete what came. Does nothing once Raft has heard of it."""
        if self._over:
            return
        self._end()
        self._incoming._worker.run(self._discard).addErrback(
            lambda failure: _log.warn("cannot delete {path}: {error}", path=str(self._path), error=failure.value)
        )

    # On the worker's thread.

    def _write(self, chunk: bytes) -> None:
        if self._file is None:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            self._file = self._path.open("wb")
        self._file.write(chunk)

    def _finish(self) -> None:
        if self._file is None:
            self._write(b"")
        file, self._file = self._file, None
        if file is not None:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        snapshot = self._message.snapshot
        if snapshot is None:
            raise ValueError("a message without its snapshot")
        self._incoming._examine(snapshot, self._path, self._crc32c)

    def _discard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._path.unlink(missing_ok=True)

    # On the reactor's.

    def _tell(self, _: Any) -> None:
        if self._over:
            raise ConnectionError("the snapshot was given up while it was examined")
        self._end()
        incoming, message = self._incoming, self._message
        if message.snapshot is not None:
            index = message.snapshot.meta.index
            former = incoming.take(index)
            if former is not None:
                incoming.delete(former)
            incoming.waiting[index] = self._path
            while len(incoming.waiting) > MOST_WAITING:  # one may be being installed for as long as it likes
                incoming.delete(incoming.waiting.pop(next(iter(incoming.waiting))))
            incoming._arrived(message)

    def _end(self) -> None:
        self._over = True
        self._incoming.receiving -= 1
