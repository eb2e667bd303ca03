"""A consistent copy of the whole state as etcd's database file, made while writes go on.

The copy stands for exactly one applied index. Its small tables are read in one go, right after a batch was written and
before the next one is, so that they, the applied index among them, are of one moment. Revisions never change once they
are written, so that of that moment's revisions the rest can be read later, a few at a time, with other work of the
storage thread in between; the one thing that would take them away, the sweeper of compactions, holds still meanwhile.
A second connection with a transaction of its own would do without that, but SQLite lets nobody else in: the lock that
keeps other processes out is what makes commits cheap.

The v2 store is not in that file: its text goes beside it, in the message between members, and is of the same moment.

The file has no name, so that the system deletes it as soon as it is closed, also by a crash.
Sources of the buckets: etcd ``server/mvcc/buckets/bucket.go``, ``server/etcdserver/cindex/cindex.go``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from struct import Struct
from typing import IO, Any, Final, Protocol

import google_crc32c

from twistedkv.apply import CLUSTER_VERSION, META_APPLIED_INDEX, META_APPLIED_TERM, META_INSTALLED
from twistedkv.compaction import Sweeper
from twistedkv.members import Membership
from twistedkv.raft.messages import SnapshotMeta
from twistedkv.storage.backend import SUB_BITS, SUB_MASK, Backend, BackendError, Bucket, RevisionRow, pack
from twistedkv.storage.bbolt import BoltWriter
from twistedkv.storage.mvcc import META_COMPACTED, META_COMPACTION_DONE, META_REVISION, encode_row
from twistedkv.v2records import META_DIRECTORY_INDEX, store_of
from twistedkv.v2text import encode

ROWS_AT_A_TIME: Final = 200  # about 2 ms of the storage thread, during which the reactor's may want to run
BYTES_AT_A_TIME: Final = 4 << 20  # of the finished file; about as long

_ETCD_NAMES: Final = {
    Bucket.ALARMS: b"alarm",
    Bucket.AUTH: b"auth",
    Bucket.AUTH_ROLES: b"authRoles",
    Bucket.AUTH_USERS: b"authUsers",
    Bucket.CLUSTER: b"cluster",
    Bucket.LEASES: b"lease",
    Bucket.MEMBERS: b"members",
    Bucket.MEMBERS_REMOVED: b"members_removed",
}
_AUTH_REVISION: Final = b"authRevision"
_FIRST_AUTH_REVISION: Final = (1).to_bytes(8, "big")  # etcd writes it when it starts on a new database

_REVISION: Final = Struct(">QcQ")  # main, "_", sub


class StateCopy:
    """The file and how far it got. Every method blocks: the storage thread's, except :meth:`close`.

    Args:
        directory: where there is room for it.
    """

    def __init__(self, directory: Path) -> None:
        self.size_bytes = 0  # of the finished file
        self.crc32c = 0  # of the finished file, all of it
        self.meta = SnapshotMeta()  # the point of the log that it stands for, and who was a member there
        self.v2_store = b""  # the v2 store, among it who that was, as members tell each other
        self.revision = 0
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - open until close()
        self._writer = BoltWriter(self._file.write)
        self._installed: bytes | None = None  # which state of the database it is a copy of
        self._next = 0  # packed revision from which rows are not copied yet

    @property
    def applied(self) -> int:
        """The index that it stands for."""
        return self.meta.index

    def begin(self, backend: Backend, now_ns: int) -> None:
        """Take everything but the revisions, and learn which of those belong to it.

        Args:
            now_ns: since 1970, for how long nodes in the v2 store's events still have to live.

        Raises:
            BackendError: what the database has of the v2 store is damaged.
        """
        records = {bucket: backend.records(bucket) for bucket in Bucket}
        meta = records.pop(Bucket.META)
        members = Membership.from_records(records[Bucket.MEMBERS], records[Bucket.MEMBERS_REMOVED])
        index, term = (int(meta.get(name, b"0")) for name in (META_APPLIED_INDEX, META_APPLIED_TERM))
        self.meta = SnapshotMeta(index, term, members.conf_state())
        nodes, events = records.pop(Bucket.DIRECTORY), records.pop(Bucket.DIRECTORY_EVENTS)
        version = records[Bucket.CLUSTER].get(CLUSTER_VERSION, b"").decode()
        try:
            directory, hub = store_of(nodes, events, meta.get(META_DIRECTORY_INDEX), members, version)
        except ValueError as error:
            raise BackendError(f"the database is damaged: {error}") from error
        self.v2_store = encode(directory, hub.history, now_ns)
        self.revision = int(meta.get(META_REVISION, b"1"))
        self._installed = meta.get(META_INSTALLED)
        records[Bucket.AUTH].setdefault(_AUTH_REVISION, _FIRST_AUTH_REVISION)
        for bucket, name in _ETCD_NAMES.items():
            self._add(name, records[bucket])
        self._add(b"meta", _etcd_meta(meta, self.meta))
        self._writer.begin(b"key")

    def copy_some(self, backend: Backend) -> bool:
        """Copy the next revisions, or look at the next part of the file when all are there; whether it is complete.

        Raises:
            BackendError: the state that this is a copy of is gone, another member's is in its place.
        """
        if self.size_bytes:
            return self._sum_up()
        rows = backend.scan(self._next, pack(self.revision + 1) - 1, ROWS_AT_A_TIME)
        if backend.records(Bucket.META).get(META_INSTALLED) != self._installed:
            raise BackendError("a snapshot has taken the place of the state that was being copied")
        put = self._writer.put
        for row in rows:
            put(revision_key(row), encode_row(row))
        if rows:
            self._next = rows[-1].revision + 1
            return False
        head = self._writer.finish()
        self.size_bytes = self._file.tell()
        self._file.seek(0)
        self._file.write(head)
        self._file.seek(0)
        return False

    def _sum_up(self) -> bool:
        """Take the next part of the finished file into its checksum; whether that was all."""
        part = self._file.read(BYTES_AT_A_TIME)
        self.crc32c = int(google_crc32c.extend(self.crc32c, part))
        if part:
            return False
        self._file.seek(0)
        return True

    def read(self, size: int) -> bytes:
        """The next bytes of the finished file, at most ``size``; none at its end."""
        return self._file.read(size)

    def close(self) -> None:
        """Give the room back. Twice is no error."""
        self._file.close()

    def _add(self, name: bytes, records: dict[bytes, bytes]) -> None:
        self._writer.begin(name)
        for key in sorted(records):
            self._writer.put(key, records[key])


class StateSource(Protocol):
    """What has the state; see :class:`twistedkv.server.Member`."""

    sweeper: Sweeper
    reactor: Any  # tells the time

    def read_backend(self, function: Callable[..., Any], *arguments: Any) -> Awaitable[Any]:
        """Run ``function(backend, …)`` on the storage thread, after everything applied so far was written."""

    def on_storage_thread(self, function: Callable[..., Any], *arguments: Any) -> Awaitable[Any]:
        """Run ``function(backend, …)`` there after what was asked for before."""


async def copy_state(source: StateSource, directory: Path, wanted: Callable[[], bool]) -> StateCopy | None:
    """Make a copy of the state as of now, or a little later.

    Args:
        directory: where its file may be.
        wanted: asked from time to time whether to go on.

    Returns:
        The copy, to be closed by the caller; None if it was not wanted any more.

    Raises:
        OSError: there is no room for it.
        BackendError: the database refused, is stopped, or got another member's state meanwhile.
    """
    copy = StateCopy(directory)
    source.sweeper.hold()
    try:
        await source.read_backend(copy.begin, int(source.reactor.seconds() * 1e9))
        while wanted():
            if await source.on_storage_thread(copy.copy_some):
                return copy
    except BaseException:
        copy.close()
        raise
    finally:
        source.sweeper.release()
    copy.close()
    return None


def revision_key(row: RevisionRow) -> bytes:
    """The key of a revision in etcd's database: 8 bytes main, ``_``, 8 bytes sub, and ``t`` for a tombstone."""
    key = _REVISION.pack(row.revision >> SUB_BITS, b"_", row.revision & SUB_MASK)
    return key + b"t" if row.tombstone else key


def crc32c_of(file: IO[bytes]) -> int:
    """The CRC-32C of a file from its beginning to its end, read in parts; what :attr:`StateCopy.crc32c` is of a copy.

    Blocks.
    """
    file.seek(0)
    crc = 0
    while part := file.read(BYTES_AT_A_TIME):
        crc = int(google_crc32c.extend(crc, part))
    return crc


def _etcd_meta(meta: dict[bytes, bytes], stands_for: SnapshotMeta) -> dict[bytes, bytes]:
    """The ``meta`` bucket as etcd 3.5 writes it."""
    state = stands_for.conf_state
    fields: dict[str, object] = {}  # Go leaves empty lists out, but not false
    if state.voters:
        fields["voters"] = list(state.voters)
    if state.learners:
        fields["learners"] = list(state.learners)
    fields["auto_leave"] = False
    found = {
        b"consistent_index": stands_for.index.to_bytes(8, "big"),
        b"term": stands_for.term.to_bytes(8, "big"),
        b"confState": json.dumps(fields, separators=(",", ":")).encode(),
    }
    for ours, theirs in ((META_COMPACTED, b"scheduledCompactRev"), (META_COMPACTION_DONE, b"finishedCompactRev")):
        revision = int(meta.get(ours, b"-1"))
        if revision >= 0:
            found[theirs] = _REVISION.pack(revision, b"_", 0)
    return found
