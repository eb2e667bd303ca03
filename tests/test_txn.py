"""Requests on keys: what is refused before it is proposed, and each rule of carrying out.

Random requests against a model are in ``tests/storage/test_mvcc.py``; here is one test a rule. What is said of etcd was
observed on 3.5.1.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import twistedkv.txn as txn_module
from twistedkv.errors import (
    CompactedError,
    DuplicateKeyError,
    EmptyKeyError,
    FutureRevisionError,
    InvalidSortOptionError,
    KeyNotFoundError,
    KVError,
    LeaseNotFoundError,
    LeaseProvidedError,
    TooManyOpsError,
    ValueProvidedError,
)
from twistedkv.lease import Lease, Lessor
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
from twistedkv.storage.keyindex import KeyIndex
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.mvcc import Need, NotLoadedError, Store, fetch
from twistedkv.txn import (
    Executor,
    KeyIntervals,
    check_delete,
    check_put,
    check_range,
    check_txn,
    is_read_only,
    is_serializable,
    put_cost,
    txn_cost,
)

MAX_OPS = 128


def put(key: bytes, value: bytes = b"v", **fields: object) -> RequestOp:
    """A put as an operation."""
    return RequestOp(request_put=PutRequest(key=key, value=value, **fields))  # type: ignore[arg-type]


def delete(key: bytes, range_end: bytes = b"", **fields: object) -> RequestOp:
    """A delete as an operation."""
    return RequestOp(request_delete_range=DeleteRangeRequest(key=key, range_end=range_end, **fields))  # type: ignore[arg-type]


def get(key: bytes, range_end: bytes = b"", **fields: object) -> RequestOp:
    """A range as an operation."""
    return RequestOp(request_range=RangeRequest(key=key, range_end=range_end, **fields))  # type: ignore[arg-type]


def txn(*success: RequestOp, orelse: tuple[RequestOp, ...] = (), when: tuple[Compare, ...] = ()) -> TxnRequest:
    """A transaction."""
    return TxnRequest(compare=when, success=success, failure=orelse)


def nested(*success: RequestOp, orelse: tuple[RequestOp, ...] = (), when: tuple[Compare, ...] = ()) -> RequestOp:
    """A transaction as an operation."""
    return RequestOp(request_txn=txn(*success, orelse=orelse, when=when))


class CheckTests(SynchronousTestCase):
    """§2 to §4: checks that need only the request."""

    def test_range(self) -> None:
        """§2 key: must be there. §2 unknown sort enum: a target that does not exist is refused, an order is not."""
        check_range(RangeRequest(key=b"a", sort_order=9, sort_target=RangeRequest.VALUE))  # type: ignore[arg-type]
        self.assertRaises(EmptyKeyError, check_range, RangeRequest(range_end=b"a"))
        for target in (-1, 5):
            self.assertRaises(InvalidSortOptionError, check_range, RangeRequest(key=b"a", sort_target=target))  # type: ignore[arg-type]

    def test_put(self) -> None:
        """§3: a key must be there; ignore_value with a value and ignore_lease with a lease are refused."""
        check_put(PutRequest(key=b"a", value=b"v", ignore_lease=True))
        check_put(PutRequest(key=b"a", lease=1, ignore_value=True))
        for error, request in (
            (EmptyKeyError, PutRequest(value=b"v")),
            (ValueProvidedError, PutRequest(key=b"a", value=b"v", ignore_value=True)),
            (LeaseProvidedError, PutRequest(key=b"a", lease=1, ignore_lease=True)),
        ):
            self.assertRaises(error, check_put, request)

    def test_delete(self) -> None:
        """§3: a delete must have a key."""
        check_delete(DeleteRangeRequest(key=b"a"))
        self.assertRaises(EmptyKeyError, check_delete, DeleteRangeRequest(range_end=b"a"))

    def test_number_of_operations(self) -> None:
        """§4 limits: the longest list counts; a nested transaction has what its parent leaves."""
        compare = Compare(key=b"a")
        check_txn(txn(*[get(b"a")] * MAX_OPS, orelse=(get(b"a"),) * MAX_OPS, when=(compare,) * MAX_OPS), MAX_OPS)
        check_txn(txn(nested(*[get(b"a")] * (MAX_OPS - 1))), MAX_OPS)
        for request in (
            txn(*[get(b"a")] * (MAX_OPS + 1)),
            txn(orelse=(get(b"a"),) * (MAX_OPS + 1)),
            txn(when=(compare,) * (MAX_OPS + 1)),
            txn(nested(*[get(b"a")] * MAX_OPS)),
            txn(orelse=(nested(orelse=(get(b"a"),) * MAX_OPS),)),
        ):
            self.assertRaises(TooManyOpsError, check_txn, request, MAX_OPS)

    def test_operations_are_checked_as_alone(self) -> None:
        """§4 validation: every compare has a key, every operation would pass alone, and none is empty."""
        check_txn(txn(put(b"a"), delete(b"b"), get(b"a"), when=(Compare(key=b"a"),)), MAX_OPS)
        for error, operation in (
            (EmptyKeyError, get(b"")),
            (EmptyKeyError, put(b"")),
            (EmptyKeyError, delete(b"")),
            (EmptyKeyError, nested(when=(Compare(),))),
            (KeyNotFoundError, RequestOp()),
        ):
            self.assertRaises(error, check_txn, txn(operation), MAX_OPS)
            self.assertRaises(error, check_txn, txn(orelse=(operation,)), MAX_OPS)

    def test_accepted_overlaps(self) -> None:
        """§4 duplicate rule: what etcd accepts although keys repeat."""
        for request in (
            txn(put(b"a"), put(b"b"), delete(b"c")),
            txn(put(b"a"), orelse=(put(b"a"),)),
            txn(delete(b"a", b"c"), delete(b"b")),
            txn(put(b"a"), get(b"a"), delete(b"b", b"c")),
            txn(put(b"c"), delete(b"a", b"c")),
            txn(nested(put(b"a"), orelse=(put(b"a"),))),
            txn(nested(put(b"a")), nested(delete(b"a"))),
            txn(put(b"b"), delete(b"c", b"a")),
            txn(put(b"b"), delete(b"a", b"\0")),
            txn(nested(delete(b"a", b"\0")), put(b"b")),
        ):
            check_txn(request, MAX_OPS)

    def test_duplicate_keys(self) -> None:
        """§4 duplicate rule: a key put twice, or put and deleted, on one path, over all levels."""
        for operations in (
            (put(b"a"), put(b"a")),
            (put(b"b"), delete(b"a", b"c")),
            (delete(b"a"), put(b"a")),
            (nested(put(b"a")), put(b"a")),
            (nested(orelse=(put(b"a"),)), put(b"a")),
            (nested(put(b"a")), nested(put(b"a"))),
            (nested(put(b"a")), nested(orelse=(put(b"a"),))),
            (nested(put(b"a")), delete(b"a")),
            (nested(orelse=(put(b"a"),)), delete(b"a")),
            (nested(delete(b"a")), put(b"a")),
            (nested(orelse=(delete(b"a"),)), put(b"a")),
            (nested(delete(b"a")), nested(put(b"a"))),
            (nested(nested(put(b"a"), put(b"a"))),),
        ):
            self.assertRaises(DuplicateKeyError, check_txn, txn(*operations), MAX_OPS)
            self.assertRaises(DuplicateKeyError, check_txn, txn(orelse=operations), MAX_OPS)


class KeyIntervalsTests(SynchronousTestCase):
    """Sets of keys."""

    @given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=12), st.integers(0, 12))
    def test_any_intervals(self, bounds: list[tuple[int, int]], split: int) -> None:
        """Added one by one or as two sets, intervals hold what they should, and stay disjoint and sorted."""
        keys = [bytes((number,)) for number in range(21)]
        intervals, other = KeyIntervals(), KeyIntervals()
        for first, last in bounds[:split]:
            intervals.add(keys[first], keys[last])
        for first, last in bounds[split:]:
            other.add(keys[first], keys[last])
        intervals.update(other)
        expected = {key for first, last in bounds for key in keys[first:last]}
        self.assertEqual({key for key in keys if key in intervals}, expected)
        edges = [edge for pair in zip(intervals._starts, intervals._ends, strict=True) for edge in pair]
        self.assertEqual(edges, sorted(set(edges)))


class FactTests(SynchronousTestCase):
    """What a request is, without looking at the store."""

    def test_read_only(self) -> None:
        """§4 read-only txn: only ranges, at every depth."""
        for request in (txn(), txn(get(b"a"), orelse=(get(b"b"),)), txn(nested(get(b"a")))):
            self.assertTrue(is_read_only(request))
        for operation in (put(b"a"), delete(b"a"), nested(orelse=(put(b"a"),)), RequestOp()):
            self.assertFalse(is_read_only(txn(get(b"a"), operation)))
            self.assertFalse(is_read_only(txn(orelse=(operation,))))

    def test_serializable(self) -> None:
        """§4 read-only txn: linearizable unless all ranges are serializable."""
        local = get(b"a", serializable=True)
        for request in (txn(), txn(local, orelse=(local,)), txn(nested(local))):
            self.assertTrue(is_serializable(request))
        for request in (txn(local, get(b"a")), txn(orelse=(get(b"a"),)), txn(nested(orelse=(get(b"a"),)))):
            self.assertFalse(is_serializable(request))

    def test_cost(self) -> None:
        """§9 quota: 256 bytes, key and value for each put of the dearer branch; reads and deletes are free."""
        self.assertEqual(put_cost(PutRequest(key=b"ab", value=b"cde")), 261)
        request = txn(put(b"a", b""), get(b"a"), delete(b"a"), orelse=(put(b"a", b""), nested(put(b"b", b""))))
        self.assertEqual(txn_cost(request), 2 * 257)
        self.assertEqual(txn_cost(txn(get(b"a"), delete(b"a"))), 0)


class Carrying(SynchronousTestCase):
    """A store with the keys a (revision 2, lease 7) and b (3, and 4)."""

    def setUp(self) -> None:
        self.store = Store(KeyIndex(1 << 20))
        self.lessor = Lessor(1, [Lease(7, 60), Lease(8, 60)])
        self.executor = Executor(self.store, self.lessor)
        for key, value, lease in ((b"a", b"1", 7), (b"b", b"2", 0), (b"b", b"3", 0)):
            self.executor.put(PutRequest(key=key, value=value, lease=lease))

    def run_txn(self, request: TxnRequest) -> TxnResponse:
        """Carry out a transaction."""
        return TxnResponse.FromString(self.executor.txn(request).body)

    def assert_refused(self, error: type[KVError], request: TxnRequest) -> None:
        """A transaction is refused and changes nothing."""
        before = self.store.revision, len(self.store.batch.rows)
        self.assertRaises(error, self.executor.txn, request)
        self.assertEqual((self.store.revision, len(self.store.batch.rows)), before)
        self.assertFalse(self.store.changed)


class PutDeleteTests(Carrying):
    """§3, put and delete."""

    def test_revisions_in_headers(self) -> None:
        """§1 header.revision: a put's is new, a delete's only if it deleted something, a range's the current one."""
        self.assertEqual(self.executor.put(PutRequest(key=b"x")).revision, 5)
        self.assertEqual(self.executor.delete(DeleteRangeRequest(key=b"x")).revision, 6)
        nothing = self.executor.delete(DeleteRangeRequest(key=b"x", prev_kv=True))
        self.assertEqual((nothing.revision, nothing.body), (6, b""))
        self.assertEqual(self.executor.range(RangeRequest(key=b"a", count_only=True)).revision, 6)

    def test_ignore_value_and_lease(self) -> None:
        """§3: ignore_value keeps the value, ignore_lease the lease; without the key both are refused."""
        self.executor.put(PutRequest(key=b"a", ignore_value=True, lease=8))
        self.executor.put(PutRequest(key=b"a", value=b"new", ignore_lease=True))
        pair = KeyValue.FromString(self.store.pair(b"a") or b"")
        self.assertEqual((pair.value, pair.lease, pair.version), (b"new", 8, 3))
        for request in (PutRequest(key=b"x", ignore_value=True), PutRequest(key=b"x", ignore_lease=True)):
            self.assertRaises(KeyNotFoundError, self.executor.put, request)
            self.assertFalse(self.store.changed)

    def test_leases(self) -> None:
        """§3: an unknown lease is refused before all else; a put moves the key, and a put or delete takes it off."""
        unknown = PutRequest(key=b"x", lease=9, ignore_value=True)
        self.assertRaises(LeaseNotFoundError, self.executor.put, unknown)
        self.assertEqual(self.lessor.keys(7), {b"a"})
        self.executor.put(PutRequest(key=b"a", lease=7))
        self.assertEqual(self.lessor.keys(7), {b"a"})
        self.executor.put(PutRequest(key=b"a", lease=8))
        self.assertEqual((self.lessor.keys(7), self.lessor.keys(8)), (frozenset(), {b"a"}))
        self.executor.put(PutRequest(key=b"a"))
        self.assertEqual(self.lessor.keys(8), frozenset())
        self.executor.put(PutRequest(key=b"b", lease=8))
        self.executor.delete(DeleteRangeRequest(key=b"a", range_end=b"\0"))
        self.assertEqual(self.lessor.keys(8), frozenset())
        self.lessor.detach(99, b"a")  # of a lease that is gone

    def test_previous_pairs(self) -> None:
        """§3 prev_kv: the whole pair as it was, lease included; none for a new key."""
        done = self.executor.put(PutRequest(key=b"a", prev_kv=True))
        previous = PutResponse.FromString(done.body).prev_kv
        self.assertEqual(
            previous, KeyValue(key=b"a", value=b"1", create_revision=2, mod_revision=2, version=1, lease=7)
        )
        self.assertEqual(self.executor.put(PutRequest(key=b"x", prev_kv=True)).body, b"")
        gone = DeleteRangeResponse.FromString(
            self.executor.delete(DeleteRangeRequest(key=b"a", range_end=b"c", prev_kv=True)).body
        )
        self.assertEqual((gone.deleted, [pair.key for pair in gone.prev_kvs]), (2, [b"a", b"b"]))


class CompareTests(Carrying):
    """§4, compares."""

    def holds(self, *compares: Compare) -> bool:
        """Whether a transaction takes its first branch."""
        return self.run_txn(txn(when=compares)).succeeded

    def test_results(self) -> None:
        """§4 results: each target of key b (version 2, create 3, mod 4, value 3, lease 0) with each operator."""
        for field, target, have, more in (
            ("version", Compare.VERSION, 2, 3),
            ("create_revision", Compare.CREATE, 3, 4),
            ("mod_revision", Compare.MOD, 4, 5),
            ("value", Compare.VALUE, b"3", b"30"),
            ("lease", Compare.LEASE, 0, 1),
        ):
            for result, on_equal, on_more in (
                (Compare.EQUAL, True, False),
                (Compare.NOT_EQUAL, False, True),
                (Compare.GREATER, False, False),
                (Compare.LESS, False, True),
            ):
                for given_value, expected in ((have, on_equal), (more, on_more)):
                    compare = Compare(key=b"b", target=target, result=result, **{field: given_value})  # type: ignore[arg-type]
                    self.assertEqual(self.holds(compare), expected, compare)

    def test_all_must_hold(self) -> None:
        """§4 compare: AND of all; none at all is true; over a range every key must satisfy."""
        first = Compare(key=b"a", target=Compare.VERSION, version=1)
        second = Compare(key=b"b", target=Compare.VERSION, version=2)
        self.assertTrue(self.holds())
        self.assertTrue(self.holds(first, second))
        self.assertFalse(self.holds(first, Compare(key=b"b", target=Compare.VERSION, version=1)))
        self.assertFalse(self.holds(Compare(key=b"a", range_end=b"c", target=Compare.VERSION, version=1)))
        above = Compare(key=b"a", range_end=b"\0", target=Compare.VERSION, result=Compare.GREATER, version=0)
        self.assertTrue(self.holds(above))

    def test_missing_key(self) -> None:
        """§4: a missing key has zero for everything but its value, which never satisfies, not even NOT_EQUAL."""
        for target in (Compare.VERSION, Compare.CREATE, Compare.MOD, Compare.LEASE):
            self.assertTrue(self.holds(Compare(key=b"x", target=target)))
            self.assertFalse(self.holds(Compare(key=b"x", target=target, result=Compare.NOT_EQUAL)))
        for result in (Compare.EQUAL, Compare.NOT_EQUAL):
            self.assertFalse(self.holds(Compare(key=b"x", target=Compare.VALUE, result=result, value=b"v")))

    def test_operand_of_another_target(self) -> None:
        """§4 union mismatch: an operand that does not belong to the target counts as zero or empty."""
        self.assertFalse(self.holds(Compare(key=b"b", target=Compare.VERSION, mod_revision=2)))
        self.assertTrue(self.holds(Compare(key=b"b", target=Compare.LEASE, version=2)))
        self.assertTrue(self.holds(Compare(key=b"b", target=Compare.VALUE, result=Compare.GREATER, version=2)))

    def test_unknown_numbers(self) -> None:
        """A target that does not exist is equal to anything, and an operator that does not exist always holds."""
        self.assertTrue(self.holds(Compare(key=b"b", target=9)))  # type: ignore[arg-type]
        self.assertFalse(self.holds(Compare(key=b"b", target=9, result=Compare.GREATER)))  # type: ignore[arg-type]
        self.assertTrue(self.holds(Compare(key=b"b", result=9)))  # type: ignore[arg-type]


class TxnTests(Carrying):
    """§4, carrying out."""

    def test_answers_and_their_headers(self) -> None:
        """§1 header of nested ops: only revision, counted up by the first change; a nested txn's is empty."""
        response = self.run_txn(
            txn(get(b"a"), delete(b"x"), put(b"c", prev_kv=True), get(b"c"), nested(delete(b"c")), delete(b"x"))
        )
        self.assertTrue(response.succeeded)
        read, nothing, written, read_again, inner, nothing_again = response.responses
        self.assertEqual(read.response_range.header.revision, 4)
        self.assertEqual(nothing.response_delete_range.header.revision, 4)
        self.assertEqual(written.response_put.header.revision, 5)
        self.assertEqual(read_again.response_range.header.revision, 5)
        self.assertEqual(read_again.response_range.kvs[0].mod_revision, 5)  # §2: in a txn, earlier ops are seen
        self.assertTrue(inner.response_txn.HasField("header"))
        self.assertEqual(inner.response_txn.header.ByteSize(), 0)
        self.assertEqual(inner.response_txn.responses[0].response_delete_range.deleted, 1)
        self.assertEqual(nothing_again.response_delete_range.header.revision, 5)
        self.assertEqual(self.store.revision, 5)

    def test_read_only_changes_nothing(self) -> None:
        """§1 no-op: a transaction without changes has the current revision."""
        self.assertEqual(self.executor.txn(txn(get(b"a"), delete(b"x"))).revision, 4)

    def test_compares_see_the_state_before(self) -> None:
        """§4 evaluation: compares of nested transactions too are decided before the first operation runs."""
        absent = Compare(key=b"x", target=Compare.VERSION, version=0)
        response = self.run_txn(txn(put(b"x"), nested(put(b"y"), orelse=(put(b"z"),), when=(absent,))))
        self.assertTrue(response.responses[1].response_txn.succeeded)
        self.assertEqual(self.store.index.keys(b"x", b"\0"), [b"x", b"y"])

    def test_other_branch(self) -> None:
        """§4: when a compare fails, the other branch runs; the branches inside it are chosen on their own."""
        never = Compare(key=b"x", target=Compare.VERSION, version=1)
        request = txn(
            put(b"x"), when=(never,), orelse=(nested(put(b"y"), when=(never,), orelse=(put(b"z"),)), nested(put(b"w")))
        )
        response = self.run_txn(request)
        self.assertFalse(response.succeeded)
        self.assertEqual([each.response_txn.succeeded for each in response.responses], [False, True])
        self.assertEqual(self.store.index.keys(b"w", b"\0"), [b"w", b"z"])

    def test_failed_checks_abort_all(self) -> None:
        """§4 checks: a put's lease and key, and a range's revision, on the chosen path, before anything runs."""
        self.store.compact(3)
        for error, operation in (
            (LeaseNotFoundError, put(b"b", lease=9)),
            (KeyNotFoundError, put(b"y", ignore_value=True, value=b"")),
            (KeyNotFoundError, put(b"y", ignore_lease=True, lease=9)),
            (FutureRevisionError, get(b"a", revision=5)),
            (CompactedError, get(b"a", revision=2)),
            (CompactedError, get(b"a", revision=-1)),  # unlike a range of its own
        ):
            self.assert_refused(error, txn(put(b"x"), operation))
            self.assert_refused(error, txn(put(b"x"), nested(operation)))
            self.run_txn(txn(orelse=(operation,)))

    def test_puts_are_checked_before_ranges(self) -> None:
        """§4 checks: where both fail, the put's error is the answer."""
        self.assert_refused(LeaseNotFoundError, txn(get(b"a", revision=99), put(b"x", lease=9)))

    def test_negative_revision_before_any_compaction(self) -> None:
        """The compact revision starts at -1, so that -1 is read as the current revision, and -2 is compacted."""
        response = self.run_txn(txn(get(b"a", revision=-1), put(b"x")))
        self.assertEqual(response.responses[0].response_range.count, 1)
        self.assert_refused(CompactedError, txn(get(b"a", revision=-2), put(b"x")))

    def test_put_after_a_delete_of_everything(self) -> None:
        """etcd's duplicate rule lets a put follow a delete of all keys: it starts a new generation."""
        response = self.run_txn(txn(delete(b"a", b"\0"), put(b"b", prev_kv=True)))
        self.assertFalse(response.responses[1].response_put.HasField("prev_kv"))
        pair = KeyValue.FromString(self.store.pair(b"b") or b"")
        self.assertEqual((pair.create_revision, pair.version), (5, 1))

    def test_put_that_needs_what_is_deleted(self) -> None:
        """A put that needs its key is refused when the transaction deletes it first; etcd 3.5.1 crashes there."""
        needing = put(b"b", b"", ignore_value=True)
        for erasing in (delete(b"a", b"\0"), delete(b"a", b"c"), delete(b"b"), nested(delete(b"a", b"\0"))):
            self.assert_refused(KeyNotFoundError, txn(erasing, needing))
        for sparing in (delete(b"c", b"\0"), delete(b"a", b"b"), delete(b"a")):
            self.run_txn(txn(sparing, needing))
        self.run_txn(txn(needing, delete(b"a", b"\0")))
        self.assertEqual(len(self.store.index), 0)

    def test_operation_without_a_request(self) -> None:
        """An empty operation, which no check lets through, does nothing and has no answer."""
        response = self.run_txn(txn(RequestOp(), put(b"x")))
        self.assertEqual([each.WhichOneof("response") for each in response.responses], ["response_put"])


class NeedsTests(SynchronousTestCase):
    """What must be fetched first."""

    def setUp(self) -> None:
        self.store = Store(KeyIndex(0))
        self.executor = Executor(self.store, Lessor())
        self.backend = MemoryBackend()
        for key in (b"a", b"b", b"c"):
            self.executor.put(PutRequest(key=key, value=key * 200))
        self.backend.write(self.store.take_batch())
        self.store.index.evict()

    def needed(self, request: TxnRequest) -> set[tuple[bytes, bytes, int]]:
        """The ranges that a transaction needs."""
        return {need[:3] for need in self.executor.needs_txn(request)}

    def test_put(self) -> None:
        """A put needs the old pair if it answers with it or keeps part of it."""
        for fields in ({"prev_kv": True, "value": b"v" * 200}, {"ignore_value": True}, {"ignore_lease": True}):
            request = PutRequest(key=b"a", **fields)
            self.assertRaises(NotLoadedError, self.executor.put, request)
            self.assertFalse(self.store.changed)
            needs = list(self.executor.needs_put(request))
            self.assertEqual([need.key for need in needs], [b"a"])
            self.store.lend(fetch(self.backend, needs))
            self.executor.put(request)
            self.store.lend(None)
            self.backend.write(self.store.take_batch())
            self.store.index.evict()
        self.assertEqual(list(self.executor.needs_put(PutRequest(key=b"a"))), [])

    def test_delete(self) -> None:
        """A delete needs the old pairs only to answer with them."""
        request = DeleteRangeRequest(key=b"a", range_end=b"c", prev_kv=True)
        self.assertRaises(NotLoadedError, self.executor.delete, request)
        needs = list(self.executor.needs_delete(request))
        self.store.lend(fetch(self.backend, needs))
        self.assertEqual(DeleteRangeResponse.FromString(self.executor.delete(request).body).deleted, 2)
        self.assertEqual(list(self.executor.needs_delete(DeleteRangeRequest(key=b"c"))), [])

    def test_range(self) -> None:
        """A range says what it misses, and answers when it is lent."""
        request = RangeRequest(key=b"a")
        error = self.assertRaises(NotLoadedError, self.executor.range, request)
        self.store.lend(fetch(self.backend, [error.need]))
        self.assertEqual(RangeResponse.FromString(self.executor.range(request).body).kvs[0].value, b"a" * 200)

    def test_txn(self) -> None:
        """A transaction needs what its compares, and both its branches at every depth, may read."""
        compare = Compare(key=b"a", target=Compare.VALUE, value=b"")
        request = txn(
            put(b"x", prev_kv=True),
            put(b"b", prev_kv=True),
            get(b"c"),
            RequestOp(),
            when=(compare,),
            orelse=(delete(b"b", b"\0", prev_kv=True), nested(get(b"a", b"c", revision=3))),
        )
        expected = {(b"a", b"", 0), (b"b", b"", 0), (b"c", b"", 0), (b"b", b"\0", 0), (b"a", b"c", 3)}
        self.assertEqual(self.needed(request), expected)

    def test_refused_ranges_need_nothing(self) -> None:
        """A range whose revision will be refused is not fetched."""
        self.store.compact(3)
        for revision in (2, 5):
            self.assertEqual(self.needed(txn(get(b"a", revision=revision))), set())

    def test_todays_revision_in_a_writing_transaction(self) -> None:
        """Today's revision is what was evicted before the transaction's first change, and an old one after it."""
        today = self.store.revision
        needs = list(self.executor.needs_txn(txn(get(b"a", revision=today), put(b"a"), get(b"a", revision=today))))
        self.assertIn(Need(b"a", b"", today), needs)
        self.store.lend(fetch(self.backend, needs))
        request = txn(get(b"a", revision=today), put(b"a", b"new"), get(b"a", revision=today), get(b"a"))
        read = TxnResponse.FromString(self.executor.txn(request).body).responses
        values = [read[position].response_range.kvs[0].value for position in (0, 2, 3)]
        self.assertEqual(values, [b"a" * 200, b"a" * 200, b"new"])

    def test_compares_of_anything_but_values_need_nothing(self) -> None:
        """Versions, revisions and leases are known of an evicted pair too; so is how many keys a range has."""
        for target, operand, holds in (
            (Compare.VERSION, {"version": 1}, True),
            (Compare.CREATE, {"create_revision": 2}, True),
            (Compare.MOD, {"mod_revision": 3}, False),
            (Compare.LEASE, {"lease": 0}, True),
        ):
            compare = Compare(key=b"a", target=target, **operand)
            request = txn(get(b"a", b"d", count_only=True), when=(compare,), orelse=())
            self.assertEqual(self.needed(request), set())
            self.assertEqual(TxnResponse.FromString(self.executor.txn(request).body).succeeded, holds)


class SizeTests(Carrying):
    """What one transaction can change."""

    def test_deletes_of_too_many_keys_are_refused(self) -> None:
        """A delete that would not fit one revision is refused before it changes anything, alone or in a transaction."""
        self.patch(txn_module, "MAX_DELETED", 1)
        before = self.store.revision, len(self.store.batch.rows)
        everything = DeleteRangeRequest(key=b"\0", range_end=b"\0")
        self.assertRaises(TooManyOpsError, self.executor.delete, everything)
        self.assert_refused(TooManyOpsError, txn(delete(b"a"), nested(delete(b"b"))))
        self.assertEqual((self.store.revision, len(self.store.batch.rows)), before)
        self.assertEqual(
            DeleteRangeResponse.FromString(self.executor.delete(DeleteRangeRequest(key=b"a")).body).deleted, 1
        )
