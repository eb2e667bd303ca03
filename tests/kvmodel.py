"""etcd's rules for keys, told in the plainest way: a list of all changes, searched from the start for every question.

It is what the store is compared with. It has no index, no cache, no database and no compaction of what it keeps.
Source of the rules: etcd ``server/etcdserver/apply.go`` and ``server/storage/mvcc``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from twistedkv.errors import CompactedError, FutureRevisionError, KeyNotFoundError, LeaseNotFoundError
from twistedkv.pb.kv_pb2 import KeyValue
from twistedkv.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RequestOp,
    TxnRequest,
    TxnResponse,
)


class Change(NamedTuple):
    """One change of one key."""

    main: int
    sub: int
    key: bytes
    pair: KeyValue | None  # None: deleted


class Path(NamedTuple):
    """Which branch a transaction takes, and those inside that branch, in order."""

    succeeded: bool
    inner: list[Path]


def within(key: bytes, start: bytes, end: bytes) -> bool:
    """Whether ``key`` is in the range of a request."""
    if end == b"":
        return key == start
    return start <= key and (end == b"\0" or key < end)


class Model:
    """All that ever happened, and what follows from it.

    Args:
        leases: those that exist.
    """

    def __init__(self, leases: Collection[int] = ()) -> None:
        self.leases = leases
        self.changes: list[Change] = []
        self.revision = 1
        self.compacted = -1

    def live(self, revision: int) -> dict[bytes, KeyValue]:
        """The live pairs as of a main revision, by key."""
        newest = {change.key: change.pair for change in self.changes if change.main <= revision}
        return {key: pair for key in sorted(newest) if (pair := newest[key]) is not None}

    def range(self, request: RangeRequest) -> RangeResponse:
        """A range on its own."""
        current = self._next() if self._changed() else self.revision
        if request.revision > current:
            raise FutureRevisionError
        revision = request.revision if request.revision > 0 else current
        if revision < self.compacted:
            raise CompactedError
        state = self.live(revision)
        pairs = [pair for key, pair in state.items() if within(key, request.key, request.range_end)]
        response = RangeResponse(count=len(pairs))
        if request.count_only:
            return response
        bounds = (request.min_mod_revision, request.max_mod_revision)
        create_bounds = (request.min_create_revision, request.max_create_revision)
        if request.limit > 0 and not (request.sort_order or any(bounds) or any(create_bounds)):
            pairs = pairs[: request.limit + 1]
        pairs = [
            pair
            for pair in pairs
            if _inside(pair.mod_revision, *bounds) and _inside(pair.create_revision, *create_bounds)
        ]
        order = request.sort_order
        if request.sort_target != RangeRequest.KEY and order == RangeRequest.NONE:
            order = RangeRequest.ASCEND
        if order in (RangeRequest.ASCEND, RangeRequest.DESCEND):
            field = ("key", "version", "create_revision", "mod_revision", "value")[request.sort_target]
            pairs.sort(key=lambda pair: getattr(pair, field), reverse=order == RangeRequest.DESCEND)
        if 0 < request.limit < len(pairs):
            pairs = pairs[: request.limit]
            response.more = True
        for pair in pairs:
            added = response.kvs.add()
            added.CopyFrom(pair)
            if request.keys_only:
                added.value = b""
        return response

    def put(self, request: PutRequest) -> PutResponse:
        """A put in a transaction of its own."""
        self._check_put(request, self.live(self.revision), lease_first=True)
        response = self._put(request)
        self._end()
        return response

    def delete(self, request: DeleteRangeRequest) -> DeleteRangeResponse:
        """A delete in a transaction of its own."""
        response = self._delete(request)
        self._end()
        return response

    def txn(self, request: TxnRequest) -> TxnResponse:
        """A transaction."""
        before = self.live(self.revision)
        path = self._choose(request, before)
        self._check_puts(request, path, dict(before))
        self._check_ranges(request, path)
        response = self._run(request, path)
        self._end()
        return response

    def compact(self, revision: int) -> None:
        """Refuse readers below ``revision``."""
        if revision <= self.compacted:
            raise CompactedError
        if revision > self.revision:
            raise FutureRevisionError
        self.compacted = revision

    def _next(self) -> int:
        return self.revision + 1

    def _changed(self) -> int:
        """How many changes the open transaction has made."""
        return sum(change.main == self._next() for change in self.changes)

    def _end(self) -> None:
        if self._changed():
            self.revision += 1

    def _check_put(self, request: PutRequest, state: dict[bytes, KeyValue], lease_first: bool) -> None:
        unknown_lease = request.lease and request.lease not in self.leases
        if unknown_lease and lease_first:
            raise LeaseNotFoundError
        if (request.ignore_value or request.ignore_lease) and request.key not in state:
            raise KeyNotFoundError
        if unknown_lease:
            raise LeaseNotFoundError

    def _put(self, request: PutRequest) -> PutResponse:
        before = self.live(self._next()).get(request.key)
        response = PutResponse(prev_kv=before if request.prev_kv else None)
        pair = KeyValue(
            key=request.key,
            value=request.value,
            lease=request.lease,
            mod_revision=self._next(),
            create_revision=before.create_revision if before else self._next(),
            version=before.version + 1 if before else 1,
        )
        if before and request.ignore_value:
            pair.value = before.value
        if before and request.ignore_lease:
            pair.lease = before.lease
        self.changes.append(Change(self._next(), self._changed(), request.key, pair))
        return response

    def _delete(self, request: DeleteRangeRequest) -> DeleteRangeResponse:
        state = self.live(self._next())
        doomed = [pair for key, pair in state.items() if within(key, request.key, request.range_end)]
        for pair in doomed:
            self.changes.append(Change(self._next(), self._changed(), pair.key, None))
        return DeleteRangeResponse(deleted=len(doomed), prev_kvs=doomed if request.prev_kv else [])

    def _choose(self, request: TxnRequest, state: dict[bytes, KeyValue]) -> Path:
        succeeded = all(_holds(compare, state) for compare in request.compare)
        inner = [
            self._choose(operation.request_txn, state)
            for operation in _branch(request, succeeded)
            if operation.HasField("request_txn")
        ]
        return Path(succeeded, inner)

    def _check_puts(self, request: TxnRequest, path: Path, state: dict[bytes, KeyValue]) -> None:
        inner = iter(path.inner)
        for operation in _branch(request, path.succeeded):
            if operation.HasField("request_txn"):
                self._check_puts(operation.request_txn, next(inner), state)
            elif operation.HasField("request_delete_range"):
                delete = operation.request_delete_range
                for key in [key for key in state if within(key, delete.key, delete.range_end)]:
                    del state[key]
            elif operation.HasField("request_put"):
                self._check_put(operation.request_put, state, lease_first=False)

    def _check_ranges(self, request: TxnRequest, path: Path) -> None:
        inner = iter(path.inner)
        for operation in _branch(request, path.succeeded):
            if operation.HasField("request_txn"):
                self._check_ranges(operation.request_txn, next(inner))
            elif operation.HasField("request_range"):
                revision = operation.request_range.revision
                if revision > self.revision:
                    raise FutureRevisionError
                if revision != 0 and revision < self.compacted:
                    raise CompactedError

    def _run(self, request: TxnRequest, path: Path) -> TxnResponse:
        response = TxnResponse(succeeded=path.succeeded)
        inner = iter(path.inner)
        for operation in _branch(request, path.succeeded):
            answer = response.responses.add()
            match operation.WhichOneof("request"):
                case "request_range":
                    answer.response_range.CopyFrom(self.range(operation.request_range))
                    answer.response_range.header.revision = self.revision + bool(self._changed())
                case "request_put":
                    answer.response_put.CopyFrom(self._put(operation.request_put))
                    answer.response_put.header.revision = self._next()
                case "request_delete_range":
                    answer.response_delete_range.CopyFrom(self._delete(operation.request_delete_range))
                    answer.response_delete_range.header.revision = self.revision + bool(self._changed())
                case "request_txn":
                    answer.response_txn.CopyFrom(self._run(operation.request_txn, next(inner)))
                    answer.response_txn.header.SetInParent()
        return response


def _branch(request: TxnRequest, succeeded: bool) -> Collection[RequestOp]:
    return request.success if succeeded else request.failure


def _inside(number: int, least: int, most: int) -> bool:
    return (not least or number >= least) and (not most or number <= most)


def _holds(compare: Compare, state: dict[bytes, KeyValue]) -> bool:
    pairs = [pair for key, pair in state.items() if within(key, compare.key, compare.range_end)]
    if not pairs and compare.target == Compare.VALUE:
        return False
    for pair in pairs or [KeyValue()]:
        have: Any
        given: Any
        have, given = {
            Compare.VERSION: (pair.version, compare.version),
            Compare.CREATE: (pair.create_revision, compare.create_revision),
            Compare.MOD: (pair.mod_revision, compare.mod_revision),
            Compare.VALUE: (pair.value, compare.value),
            Compare.LEASE: (pair.lease, compare.lease),
        }[compare.target]
        if not {
            Compare.EQUAL: have == given,
            Compare.NOT_EQUAL: have != given,
            Compare.GREATER: have > given,
            Compare.LESS: have < given,
        }[compare.result]:
            return False
    return True
