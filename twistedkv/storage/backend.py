"""The storage seam: what the store needs of a database, and the values that cross it.

A :class:`Backend` is driven by one thread, the storage worker, and every method of it blocks. It knows rows and
records; what they mean is decided above it. ``twistedkv.storage.contract`` examines any implementation.

Revisions cross this seam *packed*: ``main << 22 | sub``, one 63-bit integer whose order is the order of (main, sub).
That bounds a transaction to 4,194,304 changes, and main to 2**41 - 1: two years of 30,000 writes a second without a
pause.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

SUB_BITS = 22
SUB_MASK = (1 << SUB_BITS) - 1
MAX_MAIN = (1 << (63 - SUB_BITS)) - 1


def pack(main: int, sub: int = 0) -> int:
    """The packed form of revision (main, sub); ``pack(main + 1) - 1`` is the last possible one of ``main``."""
    return main << SUB_BITS | sub


def main_of(packed: int) -> int:
    """The main part of a packed revision."""
    return packed >> SUB_BITS


class RevisionRow(NamedTuple):
    """One change of one key. The mod_revision is the packed revision's main part."""

    revision: int  # packed; unique
    key: bytes
    create_revision: int  # 0 in a tombstone
    version: int  # 0 in a tombstone
    lease: int  # signed 64 bits; 0 is none
    value: bytes  # b"" in a tombstone
    tombstone: bool  # or the 0 or 1 that a database has for it: a million rows are read when a member starts


class Bucket(Enum):
    """The tables of (key, value) records; named after etcd's bbolt buckets where they hold the same.

    Small ones, but for DIRECTORY: a hundred thousand records with keys of up to 1,000 bytes are nothing special there.
    """

    META = "meta"  # applied_index, applied_term, compaction marks …; see storage/mvcc.py, apply.py and v2records.py
    LEASES = "leases"
    ALARMS = "alarms"
    MEMBERS = "members"
    MEMBERS_REMOVED = "members_removed"
    CLUSTER = "cluster"
    AUTH = "auth"
    AUTH_USERS = "auth_users"
    AUTH_ROLES = "auth_roles"
    DIRECTORY = "directory"  # the nodes of the v2 store, and what happened to them last; see v2records.py
    DIRECTORY_EVENTS = "directory_events"


@dataclass(slots=True)
class Batch:
    """Changes that become visible together or not at all."""

    rows: list[RevisionRow] = field(default_factory=list)  # ascending, all newer than any row written before
    records: dict[tuple[Bucket, bytes], bytes | None] = field(default_factory=dict)  # None deletes

    def __bool__(self) -> bool:
        return bool(self.rows or self.records)


class Size(NamedTuple):
    """Bytes that the database holds on disk, and how many of them carry data."""

    total: int
    in_use: int


class Backend(Protocol):
    """An ordered, transactional database of revisions and records. All calls block, one thread at a time."""

    def open(self) -> None:
        """Open or create the database, bring its schema up to date, and take its lock.

        Raises:
            BackendError: it cannot be used; the text is one line for the operator.
        """

    def close(self) -> None:
        """Let everything go. The data written so far survives the process."""

    def write(self, batch: Batch) -> None:
        """Apply ``batch`` in one transaction. Not necessarily durable before :meth:`sync`, but never torn, and never
        durable before an earlier batch.

        Raises:
            BackendError: nothing of it was applied; the same batch may be tried again.
        """

    def replace(self, batches: Iterable[Batch]) -> None:
        """Put what ``batches`` bring in the place of everything: all rows, all records, in one transaction.

        One batch is asked for at a time and let go of before the next, so that there may be more of them than memory
        has room for. Their revisions ascend from batch to batch; they need not be newer than those that go. Whoever
        makes the batches must not use this backend meanwhile. A crash leaves the old state or the new one, whole; the
        new one for sure after :meth:`sync`.

        Raises:
            BackendError: nothing was changed.
            Exception: whatever making the batches raised, as it was raised; nothing was changed.
        """

    def sync(self) -> None:
        """Return when every batch written so far survives a power cut."""

    def records(self, bucket: Bucket) -> dict[bytes, bytes]:
        """All records of one bucket."""

    def scan(self, first: int, last: int, limit: int) -> list[RevisionRow]:
        """Rows with ``first <= revision <= last`` (packed, both inclusive), ascending, at most ``limit``."""

    def rows(self, revisions: Sequence[int]) -> list[RevisionRow]:
        """The rows with exactly these packed revisions, ascending; unknown ones are left out."""

    def range_at(self, key: bytes, range_end: bytes | None, last: int) -> list[RevisionRow]:
        """For each key, its newest row with ``revision <= last``, tombstones left out, in bytewise key order.

        Args:
            range_end: exclusive; ``None`` asks for the single key; ``b"\\0"`` for every key from ``key`` on.
        """

    def surviving(self, first: int, last: int, compacted: int, limit: int) -> list[RevisionRow]:
        """As :meth:`scan`, without the rows up to main revision ``compacted`` that are tombstones or have a newer row
        of their key up to ``last``: what a compaction at ``last`` would drop of the compacted part.

        Source: etcd 3.5 ``mvcc/kvstore.go``, HashByRev with ``kvindex.Keep(rev)``; observed on 3.5.1.
        """

    def compact(self, compacted: int, after: int, limit: int) -> tuple[int, int]:
        """Delete one batch of what compaction at main revision ``compacted`` drops: the rows up to that revision that
        are tombstones or have a newer row of their key up to it.

        Looks at no more than ``limit`` rows with revision > ``after``, in order.

        Returns:
            How many rows were deleted, and the last revision looked at; 0 in the second place: all done.
        """

    def size(self) -> Size:
        """What the database takes on disk; cheap enough for once a second."""

    def defragment(self) -> bool:
        """Give unused space back to the file system, or a part of it; whether that is done.

        A call that is not done returns soon, so that other calls can come in between; it is called again.
        """


class BackendError(Exception):
    """The database refused; the text is one line that names it and says why."""


def newest(rows: Iterable[RevisionRow]) -> dict[bytes, RevisionRow]:
    """The last row of each key, tombstones included; ``rows`` ascend."""
    return {row.key: row for row in rows}
