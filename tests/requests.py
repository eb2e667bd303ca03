"""Random requests on few keys, so that they meet. Dice are passed in: an equal seed gives equal requests."""

from __future__ import annotations

from random import Random

from twistedkv.pb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)

Request = RangeRequest | PutRequest | DeleteRangeRequest | TxnRequest | CompactionRequest

_KEYS = (b"a", b"b", b"b\0", b"c", b"\xff")
_RANGE_ENDS = (b"", b"", b"\0", b"a", b"b", b"c", b"d")
_VALUES = (b"", b"x", b"v" * 150, b"w" * 200)
_LEASES = (0, 0, 7, 8, 9)
_SORT_TARGETS = (
    *(RangeRequest.KEY, RangeRequest.KEY, RangeRequest.VERSION),
    *(RangeRequest.CREATE, RangeRequest.MOD, RangeRequest.VALUE),
)
_TARGETS = (Compare.VERSION, Compare.CREATE, Compare.MOD, Compare.VALUE, Compare.LEASE)
_RESULTS = (Compare.EQUAL, Compare.GREATER, Compare.LESS, Compare.NOT_EQUAL)


class Requests:
    """Makes one random request after the other.

    Args:
        dice: all chance comes from here.
        revision: what the store's revision is about; revisions in requests are around it.
    """

    def __init__(self, dice: Random, revision: int = 1) -> None:
        self.dice = dice
        self.revision = revision

    def any(self) -> Request:
        """Any request; mostly puts and transactions, so that there is something to find."""
        kinds = (self.put, self.put, self.put, self.txn, self.txn, self.range, self.range, self.delete, self.compaction)
        return self.dice.choice(kinds)()

    def range(self) -> RangeRequest:
        """A range with any mixture of options."""
        dice = self.dice
        request = RangeRequest(key=dice.choice(_KEYS), range_end=dice.choice(_RANGE_ENDS))
        request.limit = dice.choice((0, 0, 1, 2, -1))
        request.revision = dice.choice((0, 0, 0, -1, -3, self._revision(), self._revision()))
        request.sort_order = dice.choice(
            (RangeRequest.NONE, RangeRequest.NONE, RangeRequest.ASCEND, RangeRequest.DESCEND)
        )
        request.sort_target = dice.choice(_SORT_TARGETS)
        request.keys_only, request.count_only = dice.random() < 0.2, dice.random() < 0.1
        for bound in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
            if dice.random() < 0.1:
                setattr(request, bound, self._revision())
        return request

    def put(self) -> PutRequest:
        """A put that passes the checks that need no state."""
        dice = self.dice
        request = PutRequest(key=dice.choice(_KEYS), prev_kv=dice.random() < 0.3)
        request.ignore_value, request.ignore_lease = dice.random() < 0.2, dice.random() < 0.2
        if not request.ignore_value:
            request.value = dice.choice(_VALUES)
        if not request.ignore_lease:
            request.lease = dice.choice(_LEASES)
        return request

    def delete(self) -> DeleteRangeRequest:
        """A delete."""
        dice = self.dice
        return DeleteRangeRequest(
            key=dice.choice(_KEYS), range_end=dice.choice(_RANGE_ENDS), prev_kv=dice.random() < 0.5
        )

    def compaction(self) -> CompactionRequest:
        """A compaction."""
        return CompactionRequest(revision=self._revision())

    def txn(self, depth: int = 2) -> TxnRequest:
        """A transaction, nested up to ``depth`` levels."""
        dice = self.dice
        request = TxnRequest(compare=[self.compare() for _ in range(dice.choice((0, 0, 1, 1, 2)))])
        for branch in (request.success, request.failure):
            branch.extend(self._operation(depth) for _ in range(dice.randint(0, 3)))
        return request

    def compare(self) -> Compare:
        """A compare; some miss the operand that their target asks for."""
        dice = self.dice
        compare = Compare(key=dice.choice(_KEYS), range_end=dice.choice(_RANGE_ENDS))
        compare.target = dice.choice(_TARGETS)
        compare.result = dice.choice(_RESULTS)
        match dice.choice((compare.target, compare.target, dice.randint(0, 5))):
            case Compare.VERSION:
                compare.version = dice.randint(0, 2)
            case Compare.CREATE:
                compare.create_revision = self._revision()
            case Compare.MOD:
                compare.mod_revision = self._revision()
            case Compare.VALUE:
                compare.value = dice.choice(_VALUES)
            case Compare.LEASE:
                compare.lease = dice.choice(_LEASES)
        return compare

    def _operation(self, depth: int) -> RequestOp:
        match self.dice.randint(0, 5 if depth else 4):
            case 0 | 1:
                return RequestOp(request_range=self.range())
            case 2 | 3:
                return RequestOp(request_put=self.put())
            case 4:
                return RequestOp(request_delete_range=self.delete())
            case _:
                return RequestOp(request_txn=self.txn(depth - 1))

    def _revision(self) -> int:
        """Mostly one that happened a moment ago, now and then the next one."""
        return max(0, self.revision + self.dice.choice((-6, -4, -3, -2, -2, -1, -1, 0, 0, 0, 1)))
