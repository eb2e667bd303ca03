"""What happened lately, for whoever is a little behind; and what happened long ago, read from the database.

The recent past is kept in memory, bounded in revisions and bytes, and holds what exists anyway: the encoded pairs.
:class:`Replay` reads the rest on the storage thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from twistedkv.pb.kv_pb2 import KeyValue
from twistedkv.storage.backend import Backend, RevisionRow, main_of, pack
from twistedkv.storage.mvcc import Change, compacted_in, encode_row
from twistedkv.watchers import RangeIndex

RECENT_REVISIONS = 10_000
RECENT_BYTES = 16 << 20

BATCH_REVISIONS = 1_000  # at most, of one step of catching up; etcd mvcc/watcher_group.go, watchBatchMaxRevs
BATCH_BYTES = 4 << 20  # of events read from the database, after which a batch ends with its revision

_CHANGE_BYTES = 100  # about what a change takes in memory beside its bytes
_PAGE_BYTES = 256 << 10  # of rows that are read at a time, about
_MOST_ROWS = 512


class Moment(NamedTuple):
    """One revision and its changes, in order of sub."""

    revision: int
    changes: Sequence[Change]


class History:
    """The last revisions, without a gap up to the newest.

    Args:
        next_revision: the first one that will be told.
        most_revisions, most_bytes: what is kept.
    """

    def __init__(
        self, next_revision: int, most_revisions: int = RECENT_REVISIONS, most_bytes: int = RECENT_BYTES
    ) -> None:
        self.first = next_revision  # the oldest revision held; the next one to come if there is none
        self.bytes = 0
        self._most_revisions = most_revisions
        self._most_bytes = most_bytes
        self._moments: list[Moment] = []
        self._gone = 0  # leading items of the list that were let go of

    def __len__(self) -> int:
        return len(self._moments) - self._gone

    def append(self, moment: Moment) -> None:
        """Take the next revision, and let go of the oldest ones above the bounds."""
        self._moments.append(moment)
        self.bytes += _size(moment)
        while len(self) > self._most_revisions or (self.bytes > self._most_bytes and len(self)):
            self.bytes -= _size(self._moments[self._gone])
            self._moments[self._gone] = _GONE
            self._gone += 1
            self.first += 1
        if self._gone > len(self._moments) // 2:
            del self._moments[: self._gone]
            self._gone = 0

    def since(self, revision: int, most: int = BATCH_REVISIONS) -> list[Moment]:
        """The moments from ``revision`` on, which is not before :attr:`first`; at most ``most``."""
        start = self._gone + revision - self.first
        return self._moments[start : start + most]

    def clear(self, next_revision: int) -> None:
        """Forget everything; ``next_revision`` is told next."""
        self._moments.clear()
        self._gone = self.bytes = 0
        self.first = next_revision


class Wanting(Protocol):
    """What a replay needs to know of whoever it reads for."""

    @property
    def wants_previous(self) -> bool:
        """Whether the pair before each change is needed as well."""


class Replayed(NamedTuple):
    """What a replay brought."""

    moments: list[Moment]  # without what nobody asked for
    last: int  # the revision up to which that is all
    compacted: int = -1  # by the database it was read from: before that revision something may be missing


class Replay:
    """One bounded part of the past, read from the database for several watchers at once.

    Args:
        first, last: the revisions of interest, both inclusive.
        wanted: who asks for which keys. It must not change until the replay is done.
        compacted: the compact revision. Pairs before it are not looked for.
    """

    def __init__(self, first: int, last: int, wanted: RangeIndex[Wanting], compacted: int) -> None:
        self.first = first
        self.last = last
        self._wanted = wanted
        self._compacted = compacted
        # Of wanted keys the last pair seen (None: deleted), its main revision, and the pair before that revision.
        self._newest: dict[bytes, tuple[int, bytes | None, bytes | None]] = {}

    def run(self, backend: Backend) -> Replayed:
        """Read until a bound is met, at the end of a revision. Blocks: run it on the storage thread."""
        moments: list[Moment] = []
        changes: list[Change] = []
        revision = revisions = size = 0
        compacted = compacted_in(backend)
        for row in _rows(backend, self.first, self.last):
            main = main_of(row.revision)
            if main != revision:
                if changes:
                    moments.append(Moment(revision, changes))
                    changes = []
                if revisions >= BATCH_REVISIONS or size >= BATCH_BYTES:
                    return Replayed(moments, main - 1, compacted)
                revision = main
                revisions += 1
            watchers = self._wanted.matching(row.key)
            if watchers:
                change = self._change(backend, row, any(watcher.wants_previous for watcher in watchers))
                changes.append(change)
                size += len(change.pair)
        if changes:
            moments.append(Moment(revision, changes))
        return Replayed(moments, self.last, compacted)

    def _change(self, backend: Backend, row: RevisionRow, with_previous: bool) -> Change:
        key, main = row.key, main_of(row.revision)
        pair = KeyValue(key=key, mod_revision=main).SerializeToString() if row.tombstone else encode_row(row)
        previous: bytes | None = None
        if with_previous and row.version != 1 and main > self._compacted:
            try:
                seen, newest, before = self._newest[key]
            except KeyError:
                rows = backend.range_at(key, None, pack(main) - 1)
                previous = encode_row(rows[0]) if rows else None
            else:
                # etcd api/v3rpc/watch.go reads it as of mod_revision - 1: before the transaction, if that put it too.
                previous = newest if seen < main else before
        self._newest[key] = main, None if row.tombstone else pair, previous
        return Change(key, pair, previous, bool(row.tombstone))


def _rows(backend: Backend, first: int, last: int) -> Iterator[RevisionRow]:
    """All rows of the main revisions, in pages that take about the same memory whatever the size of values."""
    start, end, limit = pack(first), pack(last + 1) - 1, 16
    while rows := backend.scan(start, end, limit):
        yield from rows
        if len(rows) < limit:
            return
        start = rows[-1].revision + 1
        size = sum(len(row.key) + len(row.value) for row in rows) + 1
        limit = max(4, min(_MOST_ROWS, limit * 2, limit * _PAGE_BYTES // size))


def _size(moment: Moment) -> int:
    return sum(
        _CHANGE_BYTES + len(change.pair) + (len(change.previous) if type(change.previous) is bytes else 0)
        for change in moment.changes
    )


_GONE = Moment(0, ())
