"""Maintenance.Snapshot: the state as a file, in pieces no faster than the client takes them.

Source: etcd ``server/etcdserver/api/v3rpc/maintenance.go``, Snapshot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twistedkv.compaction import Sweeper
from twistedkv.config import Config
from twistedkv.errors import Code, RPCError
from twistedkv.metrics import Metrics
from twistedkv.pb.rpc_pb2 import SnapshotResponse
from twistedkv.protocols.rpc import Call
from twistedkv.snapshot import StateCopy, copy_state
from twistedkv.storage.backend import Backend

BLOB_BYTES: Final = 32 * 1024
READ_BYTES: Final = 32 * BLOB_BYTES  # what a visit to the storage thread brings

_log = Logger()


class SnapshotMember(Protocol):
    """What this method needs of the member; see :class:`twistedkv.server.Member`."""

    config: Config
    metrics: Metrics
    reactor: IReactorTime
    sweeper: Sweeper

    def read_backend(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]: ...

    def on_storage_thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]: ...


async def answer_snapshot(member: SnapshotMember, call: Call) -> None:
    """Send ``call`` a copy of the state, then its SHA-256. A client that leaves ends everything.

    Raises:
        RPCError: there is no room for the copy.
        KVError, BackendError: see :func:`~twistedkv.snapshot.copy_state`.
    """
    began_s = member.reactor.seconds()
    room = _Room(call)
    directory = member.config.data_dir
    try:
        copy = await copy_state(member, directory, lambda: not call.done)
    except OSError as error:
        _log.error("cannot make a snapshot in {directory}: {error}", directory=str(directory), error=error)
        raise RPCError(Code.INTERNAL, f"etcdserver: cannot make a snapshot: {error.strerror}") from error
    if copy is None:
        return
    try:
        await _send(member, call, room, copy)
    finally:
        copy.close()
    if not call.done:
        member.metrics.backend_snapshot.observe(member.reactor.seconds() - began_s)


async def _send(member: SnapshotMember, call: Call, room: _Room, copy: StateCopy) -> None:
    digest = hashlib.sha256()

    def read(_: Backend) -> bytes:
        data = copy.read(READ_BYTES)
        digest.update(data)
        return data

    remaining = copy.size_bytes
    while remaining and not call.done:
        data = memoryview(await member.on_storage_thread(read))
        for start in range(0, len(data), BLOB_BYTES):
            await room.wait()
            if call.done:
                return
            blob = bytes(data[start : start + BLOB_BYTES])
            remaining -= len(blob)
            call.send(SnapshotResponse(remaining_bytes=remaining, blob=blob).SerializeToString())
    call.send(SnapshotResponse(blob=digest.digest()).SerializeToString())


class _Room:
    """Waits until the client takes more, or is gone."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._waiting: Deferred[None] | None = None
        call.on_writable = call.on_cancel = self._wake

    async def wait(self) -> None:
        """Return when the call is writable or done."""
        while not (self._call.writable or self._call.done):
            self._waiting = Deferred()
            await self._waiting

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)
