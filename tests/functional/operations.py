"""Seeded random requests for the differential test: etcd's KV surface and what one member answers beside it.

The key space is small and odd on purpose: keys that are prefixes of each other, keys of 0x00 and 0xff, few values, so
that conflicts, ties and empty ranges are common. A source is told the revision that the reference reached, so that
revisions around the compacted, the current and future ones come up; equal seeds against equal servers give equal
sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from random import Random

from google.protobuf import text_format
from google.protobuf.message import Message

from tests.functional.clients import BY_REQUEST
from twistedkv.pb import rpc_pb2 as pb

KEYS = (
    *(b"\x00", b"\x00\x00", b"\x00\xff", b"a", b"a\x00", b"a\x00b", b"a\xff", b"a\xff\xff", b"ab", b"abc", b"b"),
    *(b"foo", b"foo/", b"foo/1", b"foo/10", b"foo/2", b"\x7f", b"\x80", b"\xc3\xa9", b"\xfe", b"\xff", b"\xff\xff"),
    b"k" * 300,
)
VALUES = (b"", b"x", b"xx", b"y", b"\x00", b"\xff", b"\xffx", b"a long value " * 40)
_MAX_TXN_OPS = 128  # etcd's default --max-txn-ops
_MAX_DEPTH = 3


class Door(Enum):
    """The way a request takes into the server."""

    GRPC = "gRPC"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Step:
    """One request and its door."""

    door: Door
    request: Message

    def __str__(self) -> str:
        rpc = BY_REQUEST[type(self.request)]
        fields = text_format.MessageToString(self.request, as_one_line=True)
        return f"{self.door.value} {rpc.path} {{{fields[:2000]}}}"


def prefix_end(key: bytes) -> bytes:
    """The ``range_end`` that makes ``key`` a prefix; all of 0xff has none but the end of the key space."""
    stripped = key.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\x00"


class OperationSource:
    """Makes one request after another.

    Args:
        random: the seeded dice.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self.revision = 1  # the newest that the reference has shown
        self.compacted = 0
        self._weighted: tuple[tuple[int, Callable[[], Message]], ...] = (
            (36, self._range),
            (24, self._put),
            (8, self._delete),
            (22, lambda: harmless(self._txn())),
            (2, self._wide_txn),
            (2, self._compaction),
            (3, self._hash_kv),
            (1, self._alarm_get),
            (1, pb.StatusRequest),
            (1, self._member_list),
        )
        self._defragment_odds = 0.002  # it takes 10 ms and more

    def next(self) -> Step:
        """The next request."""
        random = self._random
        if random.random() < self._defragment_odds:
            request: Message = pb.DefragmentRequest()
        else:
            weights, makers = zip(*self._weighted, strict=True)
            request = random.choices(makers, weights)[0]()
        doors = [Door.GRPC, Door.GATEWAY] if BY_REQUEST[type(request)].http_path else [Door.GRPC]
        return Step(random.choice(doors), request)

    def _chance(self, odds: float) -> bool:
        return self._random.random() < odds

    def _key(self) -> bytes:
        return b"" if self._chance(0.01) else self._random.choice(KEYS)

    def _key_range(self, single_odds: float, everything_odds: float = 0.2) -> tuple[bytes, bytes]:
        key = self._key()
        if self._chance(single_odds):
            return key, b""
        ends = [b"\x00", prefix_end(key), self._random.choice(KEYS), self._random.choice(KEYS), key]
        if self._chance(everything_odds):
            return b"\x00", b"\x00"
        return key, self._random.choice(ends)

    def _some_revision(self) -> int:
        """Any that matters: around the compacted one, up to the current one, a little beyond, negative."""
        choices = [
            *(-1, 0, 1, self.compacted - 1, self.compacted, self.compacted + 1),
            *(self.revision, self.revision, self.revision + 1, self.revision + 1000, 2**63 - 1),
            *(self._random.randint(max(self.compacted, 1), max(self.revision, 1)) for _ in range(8)),
        ]
        return self._random.choice(choices)

    def _range(self) -> pb.RangeRequest:
        random = self._random
        key, range_end = self._key_range(single_odds=0.3)
        request = pb.RangeRequest(key=key, range_end=range_end, serializable=self._chance(0.3))
        if self._chance(0.35):
            request.revision = self._some_revision()
        if self._chance(0.4):
            request.limit = random.choice([1, 1, 2, 3, 5, 8, 100, -1])
        if self._chance(0.5):
            request.sort_target = random.randint(0, 4)
            request.sort_order = random.choice([0, 1, 1, 1, 2, 2, 2, 2, 7])
        if self._chance(0.1):
            request.keys_only = True
        if self._chance(0.1):
            request.count_only = True
        for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
            if self._chance(0.08):
                setattr(request, name, self._some_revision())
        return request

    def _put(self) -> pb.PutRequest:
        request = pb.PutRequest(key=self._key(), value=self._random.choice(VALUES), prev_kv=self._chance(0.4))
        if self._chance(0.08):
            request.ignore_value = True
            if self._chance(0.8):
                request.value = b""
        if self._chance(0.08):
            request.ignore_lease = True
        if self._chance(0.04):
            request.lease = self._random.choice([1, 77, -5, 2**63 - 1])
        return request

    def _delete(self) -> pb.DeleteRangeRequest:
        key, range_end = self._key_range(single_odds=0.85, everything_odds=0.05)  # else hardly anything lives long
        return pb.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=self._chance(0.5))

    def _compare(self) -> pb.Compare:
        random = self._random
        key, range_end = self._key_range(single_odds=0.8)
        target = random.randint(0, 4) if self._chance(0.98) else 9
        result = random.randint(0, 3) if self._chance(0.98) else 9
        compare = pb.Compare(key=key, range_end=range_end, target=target, result=result)
        union = target if self._chance(0.9) else random.randint(0, 5)  # a union member of another target, or none
        match union:
            case 0:
                compare.version = random.choice([0, 0, 1, 1, 2, 3])
            case 1:
                compare.create_revision = random.choice([0, 0, self._some_revision()])
            case 2:
                compare.mod_revision = random.choice([0, self._some_revision(), self._some_revision()])
            case 3:
                compare.value = random.choice(VALUES)
            case 4:
                compare.lease = random.choice([0, 0, 0, 1, -1])
        return compare

    def _op(self, depth: int) -> pb.RequestOp:
        dice = self._random.random()
        if dice < 0.02:
            return pb.RequestOp()
        if dice < 0.35:
            return pb.RequestOp(request_range=self._range())
        if dice < 0.75:
            return pb.RequestOp(request_put=self._put())
        if dice < 0.88 or depth >= _MAX_DEPTH:
            return pb.RequestOp(request_delete_range=self._delete())
        return pb.RequestOp(request_txn=self._txn(depth + 1))

    def _txn(self, depth: int = 1) -> pb.TxnRequest:
        random = self._random
        branches = [[self._op(depth) for _ in range(random.choice([0, 1, 1, 2, 3, 4]))] for _ in range(2)]
        if self._chance(0.85):
            branches = [_without_repeated_puts(branch) for branch in branches]
        compares = [self._compare() for _ in range(random.choice([0, 0, 1, 1, 2]))]
        return pb.TxnRequest(compare=compares, success=branches[0], failure=branches[1])

    def _wide_txn(self) -> pb.TxnRequest:
        """A transaction around the limit of operations, flat, nested, or by its compares."""
        size = self._random.choice([_MAX_TXN_OPS - 1, _MAX_TXN_OPS, _MAX_TXN_OPS + 1])
        puts = [pb.RequestOp(request_put=pb.PutRequest(key=b"wide/%d" % n, value=b"w")) for n in range(size)]
        form = self._random.randint(0, 2)
        if form == 0:
            return pb.TxnRequest(success=puts)
        if form == 1:
            return pb.TxnRequest(success=[pb.RequestOp(request_txn=pb.TxnRequest(success=puts))])
        return pb.TxnRequest(compare=[self._compare() for _ in range(size)], failure=puts[:2])

    def _compaction(self) -> pb.CompactionRequest:
        revision = self._some_revision()
        if self.revision - self.compacted > 60 and self._chance(0.5):
            revision = self._random.randint(self.compacted + 1, self.revision)
        return pb.CompactionRequest(revision=revision, physical=self._chance(0.5))

    def _hash_kv(self) -> pb.HashKVRequest:
        return pb.HashKVRequest(revision=0 if self._chance(0.4) else self._some_revision())

    def _alarm_get(self) -> pb.AlarmRequest:
        return pb.AlarmRequest(alarm=self._random.randint(0, 2), memberID=self._random.choice([0, 1]))

    def _member_list(self) -> pb.MemberListRequest:
        return pb.MemberListRequest(linearizable=self._chance(0.5))


def harmless(txn: pb.TxnRequest) -> pb.TxnRequest:
    """The transaction without what crashes etcd 3.5.1.

    It checks ``ignore_value`` and ``ignore_lease`` against the store as it was before; where the transaction itself
    deletes the key first, the put then fails halfway, and the member panics (etcdserver/apply.go, applyTxn).
    """
    ops = list(_ops_of(txn))
    if any(op.WhichOneof("request") == "request_delete_range" for op in ops):
        for op in ops:
            if op.WhichOneof("request") == "request_put":
                op.request_put.ignore_value = op.request_put.ignore_lease = False
    return txn


def _ops_of(txn: pb.TxnRequest) -> Iterator[pb.RequestOp]:
    """Every operation, those of nested transactions too."""
    for op in (*txn.success, *txn.failure):
        yield op
        if op.WhichOneof("request") == "request_txn":
            yield from _ops_of(op.request_txn)


def _without_repeated_puts(branch: list[pb.RequestOp]) -> list[pb.RequestOp]:
    """The branch without the commonest reason for a refusal, so that most transactions do something."""
    seen: set[bytes] = set()
    kept = []
    for op in branch:
        if op.WhichOneof("request") == "request_put":
            if op.request_put.key in seen:
                continue
            seen.add(op.request_put.key)
        kept.append(op)
    return kept
