"""Snapshots for members whose missing entries are in nobody's log any more.

Raft asks for one by a message; what it says of the snapshot's index is made true here: a copy of the state is made,
which stands for that index or a later one, put into the message, and sent. Copies are made one after the other, since
each is a file as large as the state. While one is on its way the log keeps what follows it, and some time longer, since
the other member asks for that only when it has installed what it got.

Source: etcd ``server/etcdserver/snapshot_merge.go`` and ``server.go`` (sendMergedSnap).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.errors import KVError
from twistedkv.logkeeper import LogKeeper
from twistedkv.peering import Transport
from twistedkv.raft.messages import Message, Snapshot
from twistedkv.snapshot import StateCopy, StateSource, copy_state
from twistedkv.storage.backend import BackendError

CHUNK_BYTES: Final = 128 * 1024
KEPT_S: Final = 30.0  # what follows a snapshot that was delivered; etcd server.go, releaseDelayAfterSnapshot

_log = Logger()


class OutgoingSnapshots:
    """The snapshots that are being made or delivered, one for a member at most.

    Args:
        source: has the state.
        directory: where there is room for copies of it.
        keeper: keeps the log.
        peers: delivers.
        wanted: whether a message is still of use: its term and its addressee may be over.
        failed: told of a member whose snapshot could not be made.
        later: calls a function after so many seconds, unless the member stops before.
    """

    def __init__(
        self,
        source: StateSource,
        directory: Path,
        keeper: LogKeeper,
        peers: Transport,
        wanted: Callable[[Message], bool],
        failed: Callable[[int], None],
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._source = source
        self._directory = directory
        self._keeper = keeper
        self._peers = peers
        self._wanted = wanted
        self._failed = failed
        self._later = later
        self._lock = DeferredLock()
        self._copies: dict[int, StateCopy | None] = {}  # None: it is being made
        self._stopped = False

    def send(self, message: Message) -> None:
        """Make a snapshot for the addressee of ``message`` and deliver it."""
        if message.to in self._copies or self._stopped:
            return  # Raft asks again when that one is delivered or lost
        self._copies[message.to] = None
        self._keeper.hold()

        def broken(failure: Failure) -> None:
            _log.failure("sending a snapshot", failure)
            self.over(message.to)
            self._failed(message.to)

        Deferred.fromCoroutine(self._make_and_send(message)).addErrback(broken)

    def over(self, member: int, *, delivered: bool = False) -> None:
        """The delivery has ended, one way or the other, or the member is no peer any more. Twice is no error."""
        if member in self._copies:
            copy = self._copies.pop(member)
            if delivered:
                self._later(KEPT_S, self._keeper.release_hold)
            else:
                self._keeper.release_hold()
            if copy is not None:
                copy.close()

    def stop(self) -> None:
        """Give up everything."""
        self._stopped = True
        for member in list(self._copies):
            self.over(member)

    async def _make_and_send(self, message: Message) -> None:
        member = message.to

        def wanted() -> bool:
            return member in self._copies and self._wanted(message)

        copy = None
        await self._lock.acquire()
        try:
            if wanted():
                copy = await copy_state(self._source, self._directory, wanted)
        except (OSError, BackendError, KVError) as error:
            _log.error("cannot make a snapshot for {member:x}: {error}", member=member, error=error)
        finally:
            self._lock.release()
        if copy is None or not wanted():
            if copy is not None:
                copy.close()
            if member in self._copies:
                self.over(member)
                self._failed(member)
            return
        self._copies[member] = copy
        message.snapshot = Snapshot(copy.meta, copy.v2_store)
        _log.info(
            "sending {member:x} a snapshot of index {index}, {size} bytes",
            member=member,
            index=copy.meta.index,
            size=copy.size_bytes,
        )
        self._peers.send_snapshot(message, lambda: _chunks(copy), copy.crc32c)


def _chunks(copy: StateCopy) -> Iterator[bytes]:
    return iter(lambda: copy.read(CHUNK_BYTES), b"")
