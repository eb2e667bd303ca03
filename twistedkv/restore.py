"""A member's state read out of its database: when it starts, and when a snapshot has taken the place of the state.

All of it blocks and belongs on the storage thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from twistedkv.apply import (
    CLUSTER_VERSION,
    DOWNGRADE,
    META_APPLIED_INDEX,
    META_APPLIED_TERM,
    META_INSTALLED,
    Alarms,
)
from twistedkv.config import Config
from twistedkv.downgrade import Downgrade
from twistedkv.lease import Lessor, load_leases, min_ttl_s
from twistedkv.members import Membership
from twistedkv.raft.messages import Snapshot, SnapshotMeta
from twistedkv.snapshot import crc32c_of
from twistedkv.snapshotreader import SnapshotDamagedError, SnapshotReader
from twistedkv.storage.backend import Backend, BackendError, Batch, Bucket
from twistedkv.storage.directory import Directory
from twistedkv.storage.mvcc import META_COMPACTION_DONE, Store, load
from twistedkv.v2records import META_DIRECTORY_INDEX, store_of
from twistedkv.v2watch import V2Hub


class Loaded(NamedTuple):
    """What a database holds, in objects that nobody else has."""

    store: Store
    lessor: Lessor
    meta: dict[bytes, bytes]  # all records of Bucket.META
    alarms: Alarms
    membership: Membership
    cluster_version: str  # empty while it is not decided
    downgrade: Downgrade
    directory: Directory  # of the v2 store; its sink is v2hub
    v2hub: V2Hub

    @property
    def described(self) -> SnapshotMeta:
        """The point of the log that it stands for; index 0 for an empty database."""
        index, term = (int(self.meta.get(name, b"0")) for name in (META_APPLIED_INDEX, META_APPLIED_TERM))
        return SnapshotMeta(index, term, self.membership.conf_state())

    @property
    def installed(self) -> int:
        """The index of the last snapshot that took the place of everything; 0 if none did."""
        return int(self.meta.get(META_INSTALLED, b"0"))

    @property
    def compaction_done(self) -> int:
        """The compact revision up to which rows are deleted already; -1 if there never was a compaction."""
        return int(self.meta.get(META_COMPACTION_DONE, b"-1"))


def load_state(backend: Backend, config: Config) -> Loaded:
    """Read the whole state of an open database.

    Raises:
        BackendError: it cannot be read, or what it has of the v2 store is damaged.
    """
    store = load(backend, config.value_cache_bytes)
    shortest_s = min_ttl_s(config.election_timeout_ms // config.heartbeat_interval_ms, config.heartbeat_interval_ms)
    lessor = Lessor(shortest_s, load_leases(backend.records(Bucket.LEASES)))
    lessor.reattach(store.index.entries.items())
    cluster, meta = backend.records(Bucket.CLUSTER), backend.records(Bucket.META)
    membership = Membership.from_records(backend.records(Bucket.MEMBERS), backend.records(Bucket.MEMBERS_REMOVED))
    version = cluster.get(CLUSTER_VERSION, b"").decode()
    nodes, events = backend.records(Bucket.DIRECTORY), backend.records(Bucket.DIRECTORY_EVENTS)
    try:
        directory, v2hub = store_of(nodes, events, meta.get(META_DIRECTORY_INDEX), membership, version)
    except ValueError as error:
        raise BackendError(f"the database is damaged: {error}") from error
    return Loaded(
        store,
        lessor,
        meta,
        Alarms(backend.records(Bucket.ALARMS)),
        membership,
        version,
        Downgrade.from_json(cluster.get(DOWNGRADE, b"{}")),
        directory,
        v2hub,
    )


def examine_snapshot(snapshot: Snapshot, path: Path, crc32c: int | None) -> None:
    """Read a snapshot that has arrived, from end to end.

    Args:
        path: its database.
        crc32c: what its sender says of the file; ``None`` if it says nothing, as etcd does.

    Raises:
        SnapshotDamagedError: it is of no use.
        OSError: the file cannot be read.
    """
    if crc32c is not None:
        with path.open("rb") as file:
            found = crc32c_of(file)
        if found != crc32c:
            raise SnapshotDamagedError(f"the database has the checksum {found:08x} and was sent with {crc32c:08x}")
    with _opened(snapshot, path) as reader:
        reader.examine()


@contextmanager
def read_snapshot(path: Path, snapshot: Snapshot, marks: Mapping[bytes, bytes]) -> Iterator[Iterator[Batch]]:
    """What belongs into our database in place of all that is in it; see :meth:`SnapshotReader.batches`.

    The state in memory has to follow in the turn of the reactor in which it hears that the database was replaced: until
    then the two are of different states, and what is asked of both would be answered from two histories.

    Raises:
        SnapshotDamagedError, OSError: as :func:`examine_snapshot`, here or in the middle of the batches.
    """
    with _opened(snapshot, path) as reader:
        yield reader.batches(marks)


@contextmanager
def _opened(snapshot: Snapshot, path: Path) -> Iterator[SnapshotReader]:
    with path.open("rb") as file:
        descriptor = file.fileno()
        yield SnapshotReader(_Content(descriptor, os.fstat(descriptor).st_size), snapshot.meta, snapshot.data)


class _Content:
    """An open file as bytes that are read when they are looked at.

    Not an ``mmap``: there a disk that cannot be read ends the process, and here it is an :class:`OSError`.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: slice, /) -> bytes:
        start, stop, _ = key.indices(self._size)
        return os.pread(self._descriptor, max(0, stop - start), start)
