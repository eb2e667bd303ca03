"""Multi-version keys and values: revisions, generations and tombstones as etcd counts them.

The store is pure memory with one owner thread. The newest pair of every live key is in the :class:`KeyIndex`; each
change is also a row in :attr:`Store.batch`, which a write-behind takes to the database. Older revisions are read from
the database: what a request needs of it is said by :meth:`Store.needs` as :class:`Need`, fetched on the storage thread
by :func:`fetch`, and laid over the store with :meth:`Store.lend` while the request is carried out.

Source of the rules: etcd ``server/storage/mvcc/kvstore_txn.go``, ``kvstore.go``, ``hash.go`` and
``server/etcdserver/apply.go`` (Range).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import google_crc32c

from twistedkv.errors import CompactedError, FutureRevisionError, InvariantError
from twistedkv.pb.kv_pb2 import KeyValue
from twistedkv.pb.rpc_pb2 import RangeRequest
from twistedkv.storage.backend import (
    MAX_MAIN,
    SUB_BITS,
    SUB_MASK,
    Backend,
    Batch,
    Bucket,
    RevisionRow,
    main_of,
    pack,
)
from twistedkv.storage.keyindex import FROM_KEY, SMALL_BYTES, Evicted, KeyIndex

META_REVISION = b"revision"  # decimal; the store's revision when the batch was taken
META_COMPACTED = b"compact_revision"  # decimal; what readers are refused below
META_COMPACTION_DONE = b"finished_compact_revision"  # decimal; rows up to it are deleted

_ASCEND, _DESCEND = RangeRequest.ASCEND, RangeRequest.DESCEND
_BY_KEY = RangeRequest.KEY
_SORT_KEYS: dict[int, Callable[[KeyValue], Any]] = {
    RangeRequest.KEY: lambda pair: pair.key,
    RangeRequest.VERSION: lambda pair: pair.version,
    RangeRequest.CREATE: lambda pair: pair.create_revision,
    RangeRequest.MOD: lambda pair: pair.mod_revision,
    RangeRequest.VALUE: lambda pair: pair.value,
}


class Need(NamedTuple):
    """Something that only the database holds: the evicted values, or an old revision, of a key range."""

    key: bytes
    range_end: bytes
    revision: int  # 0: the rows named by ``rows``; else the state of the range as of this main revision
    rows: tuple[int, ...] = ()


class Loan(NamedTuple):
    """What :func:`fetch` brought: evicted pairs by packed revision, old ranges by (key, range_end, revision)."""

    pairs: dict[int, bytes]
    ranges: dict[tuple[bytes, bytes, int], list[bytes]]


class Change(NamedTuple):
    """One change of one key, as watchers are told of it."""

    key: bytes
    pair: bytes  # the encoded KeyValue; of a deletion, one with key and mod_revision alone
    previous: bytes | Evicted | None  # the pair before; None if the key was not live
    deleted: bool


class NotLoadedError(Exception):
    """The store was asked for something that has to be fetched first; ``need`` says what."""

    def __init__(self, need: Need) -> None:
        super().__init__(need)
        self.need = need


class RangeResult(NamedTuple):
    """The answer to a range: encoded ``mvccpb.KeyValue`` messages, and etcd's count and more."""

    pairs: list[bytes]
    total: int  # etcd's count
    more: bool


_NOTHING = Loan({}, {})


class Store:
    """The current state and the changes that are not in the database yet.

    Reads never change anything. Writes happen between :meth:`begin` and :meth:`end`; all changes between them share one
    main revision and are numbered by sub.

    Args:
        index: the live keys.
        revision: of the newest change; 1 for an empty store.
        compacted: the compact revision; -1 if there never was a compaction.
    """

    def __init__(self, index: KeyIndex, revision: int = 1, compacted: int = -1) -> None:
        self.index = index
        self.revision = revision
        self.compacted = compacted
        self.batch = Batch()
        self.batch_bytes = 0  # about what the rows of the batch take in memory
        # Told of every revision, right after its last change: the revision and its changes in order of sub.
        self.listener: Callable[[int, list[Change]], None] | None = None
        self._loan = _NOTHING
        self._sub = 0
        self._changes: list[Change] = []  # of the open transaction, if there is a listener

    # --- reading -----------------------------------------------------------------------------------

    def lend(self, loan: Loan | None) -> None:
        """Lay what was fetched over the store, or take it away with ``None``."""
        self._loan = loan or _NOTHING

    def check_revision(self, revision: int) -> None:
        """Refuse a revision that cannot be read.

        Raises:
            FutureRevisionError: it did not happen yet.
            CompactedError: it is below the compact revision.
        """
        if revision > self.revision:
            raise FutureRevisionError
        if 0 < revision < self.compacted:
            raise CompactedError

    def needs(self, key: bytes, range_end: bytes, revision: int = 0, writing: bool = False) -> Iterator[Need]:
        """What has to be fetched before the values of this range can be read; nothing, most of the time.

        Args:
            writing: it will be read in a write transaction, whose changes make today's revision an old one.
        """
        old = 0 < revision < self.revision
        if old or (writing and revision == self.revision):
            yield Need(key, range_end, revision)
        if not old and (rows := tuple(self.index.not_resident(key, range_end))):
            yield Need(key, range_end, 0, rows)

    def pair(self, key: bytes) -> bytes | None:
        """The encoded newest pair of ``key``, or None if it is not live.

        Raises:
            NotLoadedError: its value was evicted and is not lent.
        """
        entry = self.index.entries.get(key)
        if isinstance(entry, Evicted):
            entry = self._loan.pairs.get(entry.revision)
            if entry is None:
                raise NotLoadedError(next(self.needs(key, b"")))
        return entry

    def pairs(self, key: bytes, range_end: bytes, limit: int = 0) -> list[bytes]:
        """The encoded newest pairs of a range, in key order.

        Raises:
            NotLoadedError: values were evicted and are not lent; it needs just those, so that a limit bounds it.
        """
        index = self.index
        entries = index.entries
        found = [entries[each] for each in index.keys(key, range_end, limit)]
        if index.evicted:
            lent = self._loan.pairs
            missing = []
            for position, entry in enumerate(found):
                if type(entry) is Evicted:
                    if entry.revision in lent:
                        found[position] = lent[entry.revision]
                    else:
                        missing.append(entry.revision)
            if missing:
                raise NotLoadedError(Need(key, range_end, 0, tuple(missing)))
        return found  # type: ignore[return-value]

    def without_values(self, key: bytes, range_end: bytes) -> list[KeyValue | Evicted]:
        """The newest pairs of a range, where nobody asks for values; nothing has to be fetched for them."""
        entries = self.index.entries
        found = (entries[each] for each in self.index.keys(key, range_end))
        return [KeyValue.FromString(entry) if type(entry) is bytes else entry for entry in found]  # type: ignore[misc]

    def range(self, request: RangeRequest) -> RangeResult:
        """Answer a range as etcd does, including which keys a limit cuts before sorting (semantics of ``apply.go``).

        Raises:
            FutureRevisionError, CompactedError: see :meth:`check_revision`.
            NotLoadedError: part of it has to be fetched.
        """
        key, range_end, revision, limit = request.key, request.range_end, request.revision, request.limit
        # Inside a write transaction its own changes count as the next revision.
        current = self.revision + 1 if self._sub else self.revision
        if revision > current:
            raise FutureRevisionError
        if 0 < revision < self.compacted:
            raise CompactedError
        if 0 < revision < current:
            return self._old_range(request)
        if request.count_only:
            return RangeResult([], self.index.count(key, range_end), False)
        order, target = request.sort_order, request.sort_target
        filtered = (
            request.min_mod_revision
            or request.max_mod_revision
            or request.min_create_revision
            or request.max_create_revision
        )
        if order or filtered:
            pairs = self.pairs(key, range_end)
            count = len(pairs)
        else:
            pairs = self.pairs(key, range_end, limit + 1 if limit > 0 else 0)
            count = len(pairs) if limit <= 0 or len(pairs) <= limit else self.index.count(key, range_end)
            if target == _BY_KEY and not request.keys_only:
                if limit > 0 and len(pairs) > limit:
                    return RangeResult(pairs[:limit], count, True)
                return RangeResult(pairs, count, False)
        return _select(request, pairs, count)

    def _old_range(self, request: RangeRequest) -> RangeResult:
        try:
            pairs = self._loan.ranges[request.key, request.range_end, request.revision]
        except KeyError:
            raise NotLoadedError(Need(request.key, request.range_end, request.revision)) from None
        count = len(pairs)
        if request.count_only:
            return RangeResult([], count, False)
        unsorted = not (
            request.sort_order
            or request.min_mod_revision
            or request.max_mod_revision
            or request.min_create_revision
            or request.max_create_revision
        )
        if unsorted and request.limit > 0:
            pairs = pairs[: request.limit + 1]
        return _select(request, pairs, count)

    # --- writing -----------------------------------------------------------------------------------

    def begin(self) -> int:
        """Start a write transaction; the main revision that its changes would get."""
        if self._sub:
            raise InvariantError("a write transaction is already open")
        if self.revision >= MAX_MAIN:
            raise InvariantError(f"revision {self.revision} is the last one that can be stored")
        return self.revision + 1

    def end(self) -> int:
        """Close the write transaction; the store's revision, one more than before if anything changed."""
        if self._sub:
            self.revision += 1
            self._sub = 0
            if self.listener is not None:
                changes, self._changes = self._changes, []
                self.listener(self.revision, changes)
        return self.revision

    @property
    def changed(self) -> bool:
        """Whether the open write transaction has changed anything so far."""
        return self._sub > 0

    def put(self, key: bytes, value: bytes, lease: int) -> int:
        """Set ``key``. The lease that the key was attached to before (0: none)."""
        main = self.revision + 1
        sub = self._sub
        if sub > SUB_MASK:
            raise InvariantError(f"more than {SUB_MASK} changes in one transaction")
        old = self.index.entries.get(key)
        old_lease = 0
        if old is None:
            create_revision, version = main, 1
        else:
            before = KeyValue.FromString(old) if type(old) is bytes else old
            create_revision, version = before.create_revision, before.version + 1  # type: ignore[union-attr]
            old_lease = before.lease  # type: ignore[union-attr]
        encoded = KeyValue(
            key=key, create_revision=create_revision, mod_revision=main, version=version, value=value, lease=lease
        ).SerializeToString()
        self.index.set(key, encoded, sub)
        self.batch.rows.append(RevisionRow(main << SUB_BITS | sub, key, create_revision, version, lease, value, False))
        self.batch_bytes += len(encoded) + 200
        self._sub = sub + 1
        if self.listener is not None:
            self._changes.append(Change(key, encoded, old, False))
        return old_lease

    def delete(self, key: bytes, range_end: bytes = b"") -> list[tuple[bytes, int]]:
        """Put tombstones on the live keys of a range, in key order; each key with the lease it was attached to."""
        index = self.index
        deleted = []
        main = self.revision + 1
        for each in index.keys(key, range_end):
            sub = self._sub
            if sub > SUB_MASK:
                raise InvariantError(f"more than {SUB_MASK} changes in one transaction")
            entry = index.entries[each]
            before = KeyValue.FromString(entry) if type(entry) is bytes else entry
            deleted.append((each, before.lease))  # type: ignore[union-attr]
            index.remove(each)
            self.batch.rows.append(RevisionRow(main << SUB_BITS | sub, each, 0, 0, 0, b"", True))
            self.batch_bytes += len(each) + 200
            self._sub = sub + 1
            if self.listener is not None:
                tombstone = KeyValue(key=each, mod_revision=main).SerializeToString()
                previous: bytes | Evicted | None = entry
                if before.mod_revision == main:  # type: ignore[union-attr]
                    # etcd api/v3rpc/watch.go reads it as of mod_revision - 1: before this transaction put it.
                    previous = next(change.previous for change in self._changes if change.key == each)
                self._changes.append(Change(each, tombstone, previous, True))
        return deleted

    def compact(self, revision: int) -> None:
        """Refuse readers below ``revision`` from now on; the rows go later (``Backend.compact``).

        Raises:
            CompactedError: ``revision`` is not above the last compaction.
            FutureRevisionError: it did not happen yet.
        """
        if revision <= self.compacted:
            raise CompactedError
        if revision > self.revision:
            raise FutureRevisionError
        self.compacted = revision
        self.batch.records[Bucket.META, META_COMPACTED] = b"%d" % revision

    def record(self, bucket: Bucket, key: bytes, value: bytes | None) -> None:
        """Write one record of a small table with the next batch; ``None`` deletes it."""
        self.batch.records[bucket, key] = value
        self.batch_bytes += len(key) + len(value or b"") + 200

    def take_batch(self) -> Batch:
        """Hand over the changes collected so far; the store starts a new batch."""
        batch = self.batch
        if batch:
            batch.records[Bucket.META, META_REVISION] = b"%d" % self.revision
        self.batch = Batch()
        self.batch_bytes = 0
        return batch

    # --- another state -----------------------------------------------------------------------------

    def restore(self, other: Store) -> None:
        """Become what ``other`` is, a later state of the same history; ``other`` is not used any more.

        Whoever listens goes on listening, and is not told of what happened in between. Changes that are not in the
        database yet are dropped: they are in the other state as well.

        Raises:
            InvariantError: it is an earlier state, or a transaction is open; nothing was changed.
        """
        if self._sub:
            raise InvariantError("a write transaction is open")
        if other.revision < self.revision or other.compacted < self.compacted:
            raise InvariantError(
                f"a state at revision {other.revision}, compacted at {other.compacted}, does not come after the one at "
                f"{self.revision}, compacted at {self.compacted}"
            )
        self.index = other.index
        self.revision = other.revision
        self.compacted = other.compacted
        self.batch = Batch()
        self.batch_bytes = 0
        self._loan = _NOTHING


def _select(request: RangeRequest, encoded: list[bytes], count: int) -> RangeResult:
    """Filter, sort, cut and strip, in etcd's order."""
    pairs = [KeyValue.FromString(each) for each in encoded]
    if bound := request.max_mod_revision:
        pairs = [pair for pair in pairs if pair.mod_revision <= bound]
    if bound := request.min_mod_revision:
        pairs = [pair for pair in pairs if pair.mod_revision >= bound]
    if bound := request.max_create_revision:
        pairs = [pair for pair in pairs if pair.create_revision <= bound]
    if bound := request.min_create_revision:
        pairs = [pair for pair in pairs if pair.create_revision >= bound]
    order, target = request.sort_order, request.sort_target
    if target != _BY_KEY and order == RangeRequest.NONE:
        order = _ASCEND  # the key order is the index's own, any other one has to be made
    if order in (_ASCEND, _DESCEND):
        pairs.sort(key=_SORT_KEYS[target], reverse=order == _DESCEND)
    more = 0 < request.limit < len(pairs)
    if more:
        del pairs[request.limit :]
    if request.keys_only:
        for pair in pairs:
            pair.ClearField("value")
    return RangeResult([pair.SerializeToString() for pair in pairs], count, more)


def encode_row(row: RevisionRow) -> bytes:
    """A row as etcd stores it: the encoded KeyValue; of a tombstone, only the key."""
    if row.tombstone:
        return KeyValue(key=row.key).SerializeToString()
    return KeyValue(
        key=row.key,
        create_revision=row.create_revision,
        mod_revision=main_of(row.revision),
        version=row.version,
        value=row.value,
        lease=row.lease,
    ).SerializeToString()


def compacted_in(backend: Backend) -> int:
    """The compact revision that the database knows of; -1 if there never was a compaction.

    What is below may be gone. The store knows of the same compaction or of a later one, except while the state of a
    snapshot is in the database and not in memory yet.
    """
    return int(backend.records(Bucket.META).get(META_COMPACTED, b"-1"))


def fetch(backend: Backend, needs: Iterable[Need]) -> Loan:
    """Read what is needed. Blocks: run it on the storage thread, after everything collected was written.

    A range of which the database may have lost a part is not lent.
    """
    loan = Loan({}, {})
    for need in needs:
        if need.revision:
            if need.revision < compacted_in(backend):
                continue
            range_end = need.range_end or None
            if range_end is not None and range_end != FROM_KEY and range_end <= need.key:
                rows = []
            else:
                rows = backend.range_at(need.key, range_end, pack(need.revision + 1) - 1)
            loan.ranges[need.key, need.range_end, need.revision] = [encode_row(row) for row in rows]
        else:
            for row in backend.rows(need.rows):
                loan.pairs[row.revision] = encode_row(row)
    return loan


def load(backend: Backend, limit_bytes: int, chunk: int = 10_000) -> Store:
    """Rebuild the store from the database. Blocks; reads every row once, in revision order."""
    entries: dict[bytes, bytes | Evicted] = {}
    subs: dict[bytes, int] = {}
    meta = backend.records(Bucket.META)
    compacted = int(meta.get(META_COMPACTED, b"-1"))
    revision = max(int(meta.get(META_REVISION, b"1")), compacted, 1)
    resident = 0
    first = 0
    while rows := backend.scan(first, pack(MAX_MAIN), chunk):
        for row in rows:
            packed, key, create_revision, version, lease, value, tombstone = row
            old = entries.pop(key, None)
            if type(old) is bytes and (size := len(old) - len(key)) > SMALL_BYTES:
                resident -= size
            if tombstone:
                subs.pop(key, None)
                continue
            main = packed >> SUB_BITS
            entries[key] = entry = encode_row(row)
            if (size := len(entry) - len(key)) > SMALL_BYTES:
                if resident < limit_bytes:
                    resident += size
                else:
                    entries[key] = Evicted(packed, create_revision, main, version, lease, len(value))
            if packed & SUB_MASK:
                subs[key] = packed & SUB_MASK
            else:
                subs.pop(key, None)
        first = rows[-1].revision + 1
        revision = max(revision, main_of(rows[-1].revision))
    index = KeyIndex(limit_bytes)
    index.load(entries, subs)
    return Store(index, revision, compacted)


def hash_kv(backend: Backend, revision: int, compacted: int, chunk: int = 1_000) -> int:
    """etcd's HashKV as of main ``revision``: CRC-32C over ``key``, then over records in the order of revisions.

    Those are all records above the compact revision. Up to it, they are what compaction *at the hashed revision* would
    leave: etcd asks its index for that, ``Keep(rev)``, and takes an empty answer, no key is live, for no answer: then
    they are what the last compaction left.

    A record is its bucket key (8 bytes main, ``_``, 8 bytes sub, big-endian, and ``t`` for a tombstone) and the encoded
    KeyValue. Blocks: run it on the storage thread. Source: etcd ``server/storage/mvcc/kvstore.go``, HashByRev.

    Args:
        revision: what is hashed; not below ``compacted``, or below zero, where nothing is.
        compacted: the compact revision; -1 if there never was a compaction.

    Raises:
        CompactedError: the database is of a state that was compacted later.
    """
    if compacted < compacted_in(backend):
        raise CompactedError
    crc = int(google_crc32c.value(b"key"))
    last, border = pack(revision + 1) - 1, pack(compacted + 1) - 1
    any_live = bool(backend.surviving(0, last, revision, 1))
    parts = [(0, last)] if any_live else [(0, min(border, last)), (border + 1, last)]
    for first, until in parts:
        while rows := backend.surviving(first, until, compacted, chunk):
            crc = int(google_crc32c.extend(crc, b"".join(map(_hashed, rows))))
            first = rows[-1].revision + 1
    return crc


def _hashed(row: RevisionRow) -> bytes:
    main, sub = row.revision >> SUB_BITS, row.revision & SUB_MASK
    mark = b"t" if row.tombstone else b""
    return b"".join((main.to_bytes(8, "big"), b"_", sub.to_bytes(8, "big"), mark, encode_row(row)))
