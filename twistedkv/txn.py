"""Requests on keys: what is refused before it is proposed, and how each changes the store.

Validation needs the request alone; :class:`Executor` carries a request out on the store, on every member alike.
Sources: etcd ``server/etcdserver/api/v3rpc/key.go`` (checks), ``server/etcdserver/apply.go`` (execution).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from twistedkv.errors import (
    CompactedError,
    DuplicateKeyError,
    EmptyKeyError,
    FutureRevisionError,
    InvalidSortOptionError,
    KeyNotFoundError,
    LeaseProvidedError,
    TooManyOpsError,
    ValueProvidedError,
)
from twistedkv.lease import Lessor
from twistedkv.pb.kv_pb2 import KeyValue
from twistedkv.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from twistedkv.storage.backend import SUB_MASK
from twistedkv.storage.keyindex import FROM_KEY, Evicted
from twistedkv.storage.mvcc import Need, Store
from twistedkv.wire import delete_body, prefixed, put_body, range_body, revision_header, txn_body

MAX_DELETED = SUB_MASK // 2  # keys in one transaction; what is left of the sub revisions is far more than any has puts
_PUT_OVERHEAD_BYTES = 256  # etcd server/etcdserver/quota.go, kvOverhead


# --- checks that need only the request -------------------------------------------------------------


def check_range(request: RangeRequest) -> None:
    """Refuse a range that can not be answered.

    Raises:
        EmptyKeyError: no key.
        InvalidSortOptionError: a sort target that does not exist (etcd 3.5.1 panics on it, 3.6 refuses it so).
    """
    if not request.key:
        raise EmptyKeyError
    if not RangeRequest.KEY <= request.sort_target <= RangeRequest.VALUE:
        raise InvalidSortOptionError


def check_put(request: PutRequest) -> None:
    """Refuse a put that contradicts itself.

    Raises:
        EmptyKeyError, ValueProvidedError, LeaseProvidedError: as their texts say.
    """
    if not request.key:
        raise EmptyKeyError
    if request.ignore_value and request.value:
        raise ValueProvidedError
    if request.ignore_lease and request.lease:
        raise LeaseProvidedError


def check_delete(request: DeleteRangeRequest) -> None:
    """Refuse a delete without a key.

    Raises:
        EmptyKeyError: no key.
    """
    if not request.key:
        raise EmptyKeyError


def check_txn(request: TxnRequest, max_ops: int) -> None:
    """Refuse a transaction with too many operations, with one that would be refused alone, or with a key put twice.

    Args:
        max_ops: operations in the longest list; what a level uses is not there for the transactions inside it.

    Raises:
        KVError: as etcd's ``checkTxnRequest`` and ``checkIntervals``.
    """
    _check_txn_ops(request, max_ops)
    _puts_and_deletes(request.success)
    _puts_and_deletes(request.failure)


def _check_txn_ops(request: TxnRequest, max_ops: int) -> None:
    longest = max(len(request.compare), len(request.success), len(request.failure))
    if longest > max_ops:
        raise TooManyOpsError
    for compare in request.compare:
        if not compare.key:
            raise EmptyKeyError
    for operations in (request.success, request.failure):
        for operation in operations:
            match operation.WhichOneof("request"):
                case "request_range":
                    check_range(operation.request_range)
                case "request_put":
                    check_put(operation.request_put)
                case "request_delete_range":
                    check_delete(operation.request_delete_range)
                case "request_txn":
                    _check_txn_ops(operation.request_txn, max_ops - longest)
                case _:
                    raise KeyNotFoundError


class KeyIntervals:
    """A set of keys made of half-open intervals, kept disjoint and sorted: adding and asking are logarithmic."""

    def __init__(self) -> None:
        self._starts: list[bytes] = []
        self._ends: list[bytes] = []

    def add(self, start: bytes, end: bytes) -> None:
        """Add [start, end); an empty interval adds nothing."""
        if end <= start:
            return
        starts, ends = self._starts, self._ends
        first = bisect_left(starts, start)
        if first and ends[first - 1] >= start:
            first -= 1
            start = starts[first]
        last = first
        while last < len(starts) and starts[last] <= end:
            end = max(end, ends[last])
            last += 1
        starts[first:last] = [start]
        ends[first:last] = [end]

    def update(self, other: KeyIntervals) -> None:
        """Add every interval of ``other``."""
        for start, end in zip(other._starts, other._ends, strict=True):
            self.add(start, end)

    def __contains__(self, key: bytes) -> bool:
        position = bisect_right(self._starts, key)
        return position > 0 and key < self._ends[position - 1]


def _puts_and_deletes(operations: Sequence[RequestOp]) -> tuple[set[bytes], KeyIntervals]:
    """The keys that one branch puts and deletes, with all transactions in it.

    Raises:
        DuplicateKeyError: a key is put twice, or put and deleted, on one path. The order in which inner transactions
            are looked at is etcd's and matters: an earlier one's deletes refuse a later one's puts, not the other way
            round. A delete of all keys from one on refuses nothing: etcd takes its range_end for a key, and the range
            for an empty one.
    """
    puts: set[bytes] = set()
    deletes = KeyIntervals()
    for operation in operations:
        if operation.HasField("request_delete_range"):
            request = operation.request_delete_range
            deletes.add(request.key, request.range_end or request.key + b"\0")
    for operation in operations:
        if not operation.HasField("request_txn"):
            continue
        then_puts, then_deletes = _puts_and_deletes(operation.request_txn.success)
        else_puts, else_deletes = _puts_and_deletes(operation.request_txn.failure)
        for key in then_puts:
            if key in puts or key in deletes:
                raise DuplicateKeyError
        for key in else_puts:  # only one of the two branches runs, so both may put a key
            if (key in puts and key not in then_puts) or key in deletes:
                raise DuplicateKeyError
        puts |= then_puts | else_puts
        deletes.update(then_deletes)
        deletes.update(else_deletes)
    for operation in operations:
        if operation.HasField("request_put"):
            key = operation.request_put.key
            if key in puts or key in deletes:
                raise DuplicateKeyError
            puts.add(key)
    return puts, deletes


# --- facts about a request -------------------------------------------------------------------------


def is_read_only(request: TxnRequest) -> bool:
    """Whether no branch of the transaction, at any depth, can write."""
    return all(
        operation.HasField("request_range")
        or (operation.HasField("request_txn") and is_read_only(operation.request_txn))
        for operations in (request.success, request.failure)
        for operation in operations
    )


def is_serializable(request: TxnRequest) -> bool:
    """Whether every range of a read-only transaction may be answered from local state."""
    return all(
        operation.request_range.serializable
        if operation.HasField("request_range")
        else is_serializable(operation.request_txn)
        for operations in (request.success, request.failure)
        for operation in operations
    )


def put_cost(request: PutRequest) -> int:
    """Bytes that a put may add to the database, as etcd's quota counts them."""
    return _PUT_OVERHEAD_BYTES + len(request.key) + len(request.value)


def txn_cost(request: TxnRequest) -> int:
    """Bytes that the dearer branch may add. Inner transactions count, which etcd before 3.7.1 forgot."""
    return max(_ops_cost(request.success), _ops_cost(request.failure))


def _ops_cost(operations: Sequence[RequestOp]) -> int:
    cost = 0
    for operation in operations:
        if operation.HasField("request_put"):
            cost += put_cost(operation.request_put)
        elif operation.HasField("request_txn"):
            cost += txn_cost(operation.request_txn)
    return cost


# --- carrying out ----------------------------------------------------------------------------------


class Done(NamedTuple):
    """What a request came to: the revision for the header, and the response without its header."""

    revision: int
    body: bytes


@dataclass(slots=True)
class Counts:
    """How many operations were carried out, those in transactions included; a transaction is one of several."""

    ranges: int = 0
    puts: int = 0
    deletes: int = 0
    txns: int = 0
    put_bytes: int = 0  # of keys and values


class Executor:
    """Carries out requests on keys. Equal stores and equal requests give equal stores.

    Every ``needs_*`` says what the request may have to fetch first. A range, a put, a delete or a transaction without
    writes whose needs are not lent to the store raises ``NotLoadedError`` and has changed nothing; a transaction that
    writes may fail half-way without them.
    """

    def __init__(self, store: Store, lessor: Lessor) -> None:
        self.store = store
        self.lessor = lessor
        self.counts = Counts()

    def range(self, request: RangeRequest) -> Done:
        """Answer one range on its own."""
        store = self.store
        result = store.range(request)
        self.counts.ranges += 1
        return Done(store.revision, range_body(*result))

    def put(self, request: PutRequest) -> Done:
        """Put one key in a transaction of its own.

        Raises:
            LeaseNotFoundError, KeyNotFoundError: nothing was changed.
        """
        if request.lease:
            self.lessor.check(request.lease)
        self.store.begin()
        body = self._put(request)
        return Done(self.store.end(), body)

    def delete(self, request: DeleteRangeRequest) -> Done:
        """Delete a range in a transaction of its own; no live key in it is no change.

        Raises:
            TooManyOpsError: it has more keys than one transaction can change.
        """
        self._check_size([request])
        self.store.begin()
        body = self._delete(request)
        return Done(self.store.end(), body)

    def delete_keys(self, keys: Sequence[bytes]) -> int:
        """Delete keys that are live, in their order and at one revision; the revision after it.

        More keys than one transaction can change take as many revisions as they need, the same ones on every member:
        nobody is there to be told that they are too many.
        """
        store = self.store
        for first in range(0, len(keys), MAX_DELETED):
            store.begin()
            for key in keys[first : first + MAX_DELETED]:
                for each, lease in store.delete(key):
                    self.lessor.detach(lease, each)
            store.end()
        self.counts.deletes += len(keys)
        self.counts.txns += len(keys) > 1
        return store.revision

    def txn(self, request: TxnRequest) -> Done:
        """Carry out a transaction: all compares on the state before it, then the chosen operations in order.

        Raises:
            KVError: a check on the chosen path failed; nothing was changed.
        """
        path = list(self._choose(request))
        deletes: list[DeleteRangeRequest] = []
        self._check_puts(request, iter(path), deletes)
        self._check_ranges(request, iter(path))
        self._check_size(deletes)
        self.store.begin()
        body = self._run(request, iter(path))
        self.counts.txns += 1
        return Done(self.store.end(), body)

    def needs_put(self, request: PutRequest) -> Iterator[Need]:
        """See the class."""
        if request.prev_kv or request.ignore_value or request.ignore_lease:
            yield from self.store.needs(request.key, b"")

    def needs_delete(self, request: DeleteRangeRequest) -> Iterator[Need]:
        """See the class."""
        if request.prev_kv:
            yield from self.store.needs(request.key, request.range_end)

    def needs_txn(self, request: TxnRequest, writing: bool = True) -> Iterator[Need]:
        """See the class; both branches count, since what is fetched may decide between them."""
        store = self.store
        for compare in request.compare:
            if compare.target == Compare.VALUE:
                yield from store.needs(compare.key, compare.range_end)
        for operations in (request.success, request.failure):
            for operation in operations:
                match operation.WhichOneof("request"):
                    case "request_range":
                        inner = operation.request_range
                        revision = inner.revision
                        if 0 < revision < store.compacted or revision > store.revision:
                            continue  # will be refused on its path
                        if inner.count_only and revision <= 0:
                            continue
                        yield from store.needs(inner.key, inner.range_end, revision, writing)
                    case "request_put":
                        yield from self.needs_put(operation.request_put)
                    case "request_delete_range":
                        yield from self.needs_delete(operation.request_delete_range)
                    case "request_txn":
                        yield from self.needs_txn(operation.request_txn, writing)

    def _put(self, request: PutRequest) -> bytes:
        store = self.store
        key, value, lease = request.key, request.value, request.lease
        previous = None
        if request.prev_kv or request.ignore_value or request.ignore_lease:
            previous = store.pair(key)
            if previous is None:
                if request.ignore_value or request.ignore_lease:
                    raise KeyNotFoundError
            elif request.ignore_value or request.ignore_lease:
                before = KeyValue.FromString(previous)
                if request.ignore_value:
                    value = before.value
                if request.ignore_lease:
                    lease = before.lease
        old_lease = store.put(key, value, lease)
        self.counts.puts += 1
        self.counts.put_bytes += len(key) + len(value)
        if old_lease != lease:
            if old_lease:
                self.lessor.detach(old_lease, key)
            if lease:
                self.lessor.attach(lease, key)
        return put_body(previous if request.prev_kv else None)

    def _delete(self, request: DeleteRangeRequest) -> bytes:
        key, range_end = request.key, request.range_end
        previous = self.store.pairs(key, range_end) if request.prev_kv else []
        deleted = self.store.delete(key, range_end)
        self.counts.deletes += 1
        for each, lease in deleted:
            if lease:
                self.lessor.detach(lease, each)
        return delete_body(len(deleted), previous)

    def _choose(self, request: TxnRequest) -> Iterator[bool]:
        """Which branch each transaction takes, itself first, then those in its chosen branch in order."""
        succeeded = all(self._holds(compare) for compare in request.compare)
        yield succeeded
        for operation in request.success if succeeded else request.failure:
            if operation.HasField("request_txn"):
                yield from self._choose(operation.request_txn)

    def _holds(self, compare: Compare) -> bool:
        key, range_end = compare.key, compare.range_end
        # etcd apply.go, applyCompare: where there is no key there is no value to compare, and zero for all else
        if compare.target == Compare.VALUE:
            pairs = self.store.pairs(key, range_end)
            return bool(pairs) and all(_compares(compare, KeyValue.FromString(pair)) for pair in pairs)
        return all(_compares(compare, pair) for pair in self.store.without_values(key, range_end) or (KeyValue(),))

    def _check_puts(self, request: TxnRequest, path: Iterator[bool], deletes: list[DeleteRangeRequest]) -> None:
        """Refuse puts that cannot be carried out on the state before the transaction.

        Args:
            deletes: those earlier on the path. etcd looks at the state before the transaction alone, and panics when
                a delete of all keys from one on takes away the key that a put with ``ignore_*`` needs.
        """
        for operation in request.success if next(path) else request.failure:
            match operation.WhichOneof("request"):
                case "request_txn":
                    self._check_puts(operation.request_txn, path, deletes)
                case "request_delete_range":
                    deletes.append(operation.request_delete_range)
                case "request_put":
                    put = operation.request_put
                    if (put.ignore_value or put.ignore_lease) and (
                        put.key not in self.store.index.entries or any(_covers(each, put.key) for each in deletes)
                    ):
                        raise KeyNotFoundError
                    self.lessor.check(put.lease)

    def _check_ranges(self, request: TxnRequest, path: Iterator[bool]) -> None:
        for operation in request.success if next(path) else request.failure:
            if operation.HasField("request_txn"):
                self._check_ranges(operation.request_txn, path)
            elif operation.HasField("request_range"):
                revision = operation.request_range.revision
                if revision > self.store.revision:
                    raise FutureRevisionError
                if revision and revision < self.store.compacted:  # a negative one too, unlike in a range of its own
                    raise CompactedError

    def _check_size(self, deletes: Iterable[DeleteRangeRequest]) -> None:
        index = self.store.index
        if len(index) > MAX_DELETED and sum(index.count(each.key, each.range_end) for each in deletes) > MAX_DELETED:
            raise TooManyOpsError

    def _run(self, request: TxnRequest, path: Iterator[bool]) -> bytes:
        succeeded = next(path)
        responses = []
        store = self.store
        for operation in request.success if succeeded else request.failure:
            match operation.WhichOneof("request"):
                case "request_range":
                    result = store.range(operation.request_range)
                    self.counts.ranges += 1
                    header = revision_header(store.revision + store.changed)
                    responses.append(prefixed(b"\n", header + range_body(*result)))
                case "request_put":
                    body = self._put(operation.request_put)
                    responses.append(prefixed(b"\x12", revision_header(store.revision + 1) + body))
                case "request_delete_range":
                    body = self._delete(operation.request_delete_range)
                    header = revision_header(store.revision + store.changed)
                    responses.append(prefixed(b"\x1a", header + body))
                case "request_txn":
                    body = self._run(operation.request_txn, path)
                    responses.append(prefixed(b"\x22", b"\n\x00" + body))
        return txn_body(succeeded, responses)


def _covers(request: DeleteRangeRequest, key: bytes) -> bool:
    """Whether a delete takes ``key`` away."""
    if not request.range_end:
        return key == request.key
    return key >= request.key and (request.range_end == FROM_KEY or key < request.range_end)


def _compares(compare: Compare, pair: KeyValue | Evicted) -> bool:
    """Whether one pair satisfies ``compare``. A union member of another target compares with zero, as in etcd."""
    have: int | bytes
    given: int | bytes
    match compare.target:
        case Compare.VERSION:
            have, given = pair.version, compare.version
        case Compare.CREATE:
            have, given = pair.create_revision, compare.create_revision
        case Compare.MOD:
            have, given = pair.mod_revision, compare.mod_revision
        case Compare.VALUE:
            have, given = pair.value, compare.value  # type: ignore[union-attr]  # values are asked for then
        case Compare.LEASE:
            have, given = pair.lease, compare.lease
        case _:
            have = given = 0
    match compare.result:
        case Compare.EQUAL:
            return have == given
        case Compare.NOT_EQUAL:
            return have != given
        case Compare.GREATER:
            return have > given  # type: ignore[operator]
        case Compare.LESS:
            return have < given  # type: ignore[operator]
        case _:
            return True
