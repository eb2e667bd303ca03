"""The store examined rule by rule, and under random requests against a model that keeps everything."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.kvmodel import Model
from tests.requests import Requests
from tests.storage.world import LEASES, World, answer_of, outcome, passes_check
from twistedkv.errors import CompactedError, FutureRevisionError, InvariantError
from twistedkv.pb.kv_pb2 import KeyValue
from twistedkv.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest
from twistedkv.storage.backend import MAX_MAIN, SUB_MASK, Batch, Bucket, RevisionRow, pack
from twistedkv.storage.keyindex import FROM_KEY, KeyIndex
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.mvcc import (
    META_COMPACTED,
    META_REVISION,
    Change,
    Need,
    NotLoadedError,
    Store,
    fetch,
    hash_kv,
    load,
)

BIG = b"v" * 200  # large enough to be evicted


def new_store(limit_bytes: int = 1 << 30) -> Store:
    """An empty store."""
    return Store(KeyIndex(limit_bytes))


def put(store: Store, key: bytes, value: bytes = b"v", lease: int = 0) -> int:
    """One put in a transaction of its own; the store's revision after it."""
    store.begin()
    store.put(key, value, lease)
    return store.end()


def delete(store: Store, key: bytes, range_end: bytes = b"") -> list[tuple[bytes, int]]:
    """One delete in a transaction of its own."""
    store.begin()
    deleted = store.delete(key, range_end)
    store.end()
    return deleted


def keys_of(pairs: list[bytes]) -> list[bytes]:
    """The keys of encoded pairs."""
    return [KeyValue.FromString(pair).key for pair in pairs]


class StoreAgainstModelTests(SynchronousTestCase):
    """§1 to §5 at once: whatever is asked in whatever order, the store answers as the model does, byte by byte."""

    @settings(max_examples=150, deadline=None)
    @given(seed=st.integers(0, 1 << 32), length=st.integers(1, 120))
    def test_random_requests(self, seed: int, length: int) -> None:
        """Random requests get the model's answers, with evictions, flushes, compactions and restarts in between."""
        dice = Random(seed)
        requests = Requests(dice)
        world, model = World(), Model(LEASES)
        for _ in range(length):
            requests.revision = model.revision
            request = requests.any()
            if isinstance(request, TxnRequest) and not passes_check(request):
                continue
            expected = outcome(lambda asked: answer_of(model, asked), request)
            self.assertEqual(outcome(world.send, request), expected, request)
            self.assertFalse(world.store.changed)
            match dice.randint(0, 11):
                case 0:
                    world.flush()
                case 1:
                    world.compact_rows()
                case 2:
                    world.restart(dice.choice((0, 300, 1 << 20)))
        self.assert_same_state(world, model)

    def assert_same_state(self, world: World, model: Model) -> None:
        """Live pairs, attachments, and the whole surviving history."""
        live = model.live(model.revision)
        everything = RangeRequest(key=b"\0", range_end=b"\0")
        self.assertEqual(outcome(world.send, everything), answer_of(model, everything))
        for lease in LEASES:
            attached = {key for key, pair in live.items() if pair.lease == lease}
            self.assertEqual(world.lessor.keys(lease), attached)
        world.flush()
        last = pack(model.revision + 1) - 1
        written = {row.revision: row.key for row in world.backend.scan(pack(model.compacted + 1), last, 10_000)}
        newer = [change for change in model.changes if change.main > model.compacted]
        self.assertEqual(written, {pack(change.main, change.sub): change.key for change in newer})


class RevisionTests(SynchronousTestCase):
    """§1, revisions."""

    def test_empty_store_has_revision_1(self) -> None:
        """§1 start: an empty store is at revision 1, and the first write gives 2."""
        store = new_store()
        self.assertEqual(store.revision, 1)
        self.assertEqual(put(store, b"a"), 2)

    def test_sub_counts_inside_a_transaction(self) -> None:
        """§1 revision: one transaction is one main revision; its changes are numbered from 0."""
        store = new_store()
        put(store, b"z")
        self.assertEqual(store.begin(), 3)
        store.put(b"a", b"", 0)
        store.put(b"b", b"", 0)
        self.assertTrue(store.changed)
        store.delete(b"z")
        self.assertEqual(store.end(), 3)
        self.assertEqual([row.revision for row in store.batch.rows[1:]], [pack(3, 0), pack(3, 1), pack(3, 2)])

    def test_nothing_changed_is_no_revision(self) -> None:
        """§1 no-op: deleting nothing leaves the revision where it was."""
        store = new_store()
        self.assertEqual(delete(store, b"a"), [])
        self.assertEqual(store.revision, 1)
        self.assertFalse(store.batch)

    def test_put_again_after_delete_is_a_new_generation(self) -> None:
        """§1 put and delete: version counts up, create_revision stays, and both start anew after a tombstone."""
        store = new_store()
        put(store, b"a", b"1")
        put(store, b"a", b"2")
        pair = store.pair(b"a")
        assert pair is not None
        self.assertEqual(
            KeyValue.FromString(pair),
            KeyValue(key=b"a", create_revision=2, mod_revision=3, version=2, value=b"2"),
        )
        delete(store, b"a")
        self.assertIsNone(store.pair(b"a"))
        self.assertEqual(store.batch.rows[-1], RevisionRow(pack(4), b"a", 0, 0, 0, b"", True))
        put(store, b"a", b"3")
        self.assertEqual(store.batch.rows[-1], RevisionRow(pack(5), b"a", 5, 1, 0, b"3", False))

    def test_put_and_delete_tell_the_old_lease(self) -> None:
        """§3: a put without a lease takes the key off its lease, and so does a delete; both name it."""
        store = new_store(0)
        put(store, b"a", BIG, 7)
        store.begin()
        self.assertEqual(store.put(b"a", b"", 0), 7)
        store.end()
        put(store, b"a", BIG, 8)
        store.index.evict()
        self.assertEqual(delete(store, b"a"), [(b"a", 8)])

    def test_two_open_transactions_are_refused(self) -> None:
        """A transaction that was not ended stops the member rather than swallow the next one's changes."""
        store = new_store()
        store.begin()
        store.put(b"a", b"", 0)
        self.assertRaises(InvariantError, store.begin)

    def test_last_revision(self) -> None:
        """What the packed form cannot number is refused before anything changes."""
        self.assertRaises(InvariantError, Store(KeyIndex(0), MAX_MAIN).begin)
        store = new_store()
        put(store, b"a")
        store.begin()
        store._sub = SUB_MASK + 1
        self.assertRaises(InvariantError, store.put, b"b", b"", 0)
        self.assertRaises(InvariantError, store.delete, b"a")
        self.assertEqual(store.index.keys(b"", FROM_KEY), [b"a"])


class RangeTests(SynchronousTestCase):
    """§2, where the random requests do not say which rule broke."""

    def setUp(self) -> None:
        self.store = new_store()
        for key in (b"c", b"a", b"b"):
            put(self.store, key, b"value of " + key)
        put(self.store, b"a", b"z")  # revision 5; create 3, version 2

    def keys(self, **fields: object) -> list[bytes]:
        """The keys of a range over everything."""
        request = RangeRequest(**{"key": b"\0", "range_end": b"\0", **fields})  # type: ignore[arg-type]
        return keys_of(self.store.range(request).pairs)

    def test_range_ends(self) -> None:
        """§2 range_end: empty is the single key, ``\\0`` all from the key on, one not above the key an empty range."""
        for key, range_end, expected in (
            (b"b", b"", [b"b"]),
            (b"x", b"", []),
            (b"b", b"\0", [b"b", b"c"]),
            (b"\0", b"\0", [b"a", b"b", b"c"]),
            (b"a", b"c", [b"a", b"b"]),
            (b"b", b"b", []),
            (b"c", b"a", []),
        ):
            result = self.store.range(RangeRequest(key=key, range_end=range_end))
            self.assertEqual((keys_of(result.pairs), result.total), (expected, len(expected)))

    def test_limit(self) -> None:
        """§2 limit: cuts the pairs and says more, but count is the total; 0 and less are no limit."""
        for limit, expected, more in ((1, 1, True), (3, 3, False), (4, 3, False), (0, 3, False), (-1, 3, False)):
            result = self.store.range(RangeRequest(key=b"a", range_end=b"\0", limit=limit))
            self.assertEqual((len(result.pairs), result.total, result.more), (expected, 3, more))
        self.assertEqual(self.keys(limit=(1 << 63) - 1), [b"a", b"b", b"c"])

    def test_count_only(self) -> None:
        """§2 count_only: no pairs and no more, whatever the limit; also as of an old revision."""
        for revision, count in ((0, 3), (2, 1)):
            request = RangeRequest(key=b"a", range_end=b"\0", count_only=True, limit=1, revision=revision)
            backend = MemoryBackend()
            backend.write(self.store.batch)
            self.store.lend(fetch(backend, self.store.needs(b"a", b"\0", revision)))
            self.assertEqual(self.store.range(request), ([], count, False))

    def test_keys_only(self) -> None:
        """§2 keys_only: the value is dropped, the other fields stay."""
        result = self.store.range(RangeRequest(key=b"a", keys_only=True))
        self.assertEqual(
            KeyValue.FromString(result.pairs[0]), KeyValue(key=b"a", create_revision=3, mod_revision=5, version=2)
        )

    def test_sort(self) -> None:
        """§2 sort: by any field in either order; no order and another target than the key means ascending."""
        for target, ascending in (
            (RangeRequest.KEY, [b"a", b"b", b"c"]),
            (RangeRequest.VERSION, [b"b", b"c", b"a"]),
            (RangeRequest.CREATE, [b"c", b"a", b"b"]),
            (RangeRequest.MOD, [b"c", b"b", b"a"]),
            (RangeRequest.VALUE, [b"b", b"c", b"a"]),
        ):
            self.assertEqual(self.keys(sort_target=target), ascending)
            self.assertEqual(self.keys(sort_target=target, sort_order=RangeRequest.ASCEND), ascending)
            if target != RangeRequest.VERSION:  # b and c are equal there
                down = self.keys(sort_target=target, sort_order=RangeRequest.DESCEND)
                self.assertEqual(down, ascending[::-1])

    def test_limit_cuts_before_an_implicit_sort(self) -> None:
        """§2 sort: without an order, only the first limit + 1 keys are sorted; with one, all of them."""
        self.assertEqual(self.keys(sort_target=RangeRequest.MOD, limit=1), [b"b"])
        explicit = self.keys(sort_target=RangeRequest.MOD, sort_order=RangeRequest.ASCEND, limit=1)
        self.assertEqual(explicit, [b"c"])

    def test_unknown_order_is_ignored(self) -> None:
        """§2: 3.5 ignores an order that does not exist."""
        self.assertEqual(self.keys(sort_order=7, sort_target=RangeRequest.MOD), [b"a", b"b", b"c"])

    def test_revision_bounds(self) -> None:
        """§2 min and max: inclusive, 0 is off, count ignores them, and limit counts what is left."""
        self.assertEqual(self.keys(min_mod_revision=4), [b"a", b"b"])
        self.assertEqual(self.keys(max_mod_revision=4), [b"b", b"c"])
        self.assertEqual(self.keys(min_create_revision=3), [b"a", b"b"])
        self.assertEqual(self.keys(max_create_revision=2, limit=1), [b"c"])
        self.assertEqual(self.keys(max_create_revision=-1), [])
        result = self.store.range(RangeRequest(key=b"a", range_end=b"\0", min_mod_revision=5, limit=1))
        self.assertEqual((result.total, result.more), (3, False))

    def test_refused_revisions(self) -> None:
        """§2 revision: above the current one is future, below the compact revision compacted, at it readable."""
        self.store.compact(4)
        for revision, error in ((6, FutureRevisionError), (3, CompactedError)):
            self.assertRaises(error, self.store.range, RangeRequest(key=b"a", revision=revision))
            self.assertRaises(error, self.store.check_revision, revision)
        for revision in (4, 5, 0, -3):
            self.store.check_revision(revision)
        self.assertRaises(NotLoadedError, self.store.range, RangeRequest(key=b"a", revision=4))
        self.assertEqual(self.keys(revision=-3), [b"a", b"b", b"c"])
        self.assertEqual(self.keys(revision=5), [b"a", b"b", b"c"])


class LoanTests(SynchronousTestCase):
    """What only the database holds."""

    def setUp(self) -> None:
        self.store = new_store(0)
        self.backend = MemoryBackend()
        for key in (b"a", b"b", b"c"):
            put(self.store, key, BIG + key)
        self.backend.write(self.store.take_batch())
        self.store.index.evict()

    def test_missing_value_is_named(self) -> None:
        """Reading an evicted value says which rows to fetch, and no more of them than the limit lets through."""
        error = self.assertRaises(NotLoadedError, self.store.pair, b"b")
        self.assertEqual(error.need, Need(b"b", b"", 0, (pack(3),)))
        limited = RangeRequest(key=b"a", range_end=b"\0", limit=1)
        error = self.assertRaises(NotLoadedError, self.store.range, limited)
        self.assertEqual(error.need, Need(b"a", b"\0", 0, (pack(2), pack(3))))
        self.store.lend(fetch(self.backend, [error.need]))
        self.assertEqual(keys_of(self.store.range(limited).pairs), [b"a"])
        error = self.assertRaises(NotLoadedError, self.store.pairs, b"a", b"\0")
        self.assertEqual(error.need.rows, (pack(4),))

    def test_loan_is_taken_back(self) -> None:
        """What was lent is gone afterwards."""
        needs = list(self.store.needs(b"a", b""))
        self.store.lend(fetch(self.backend, needs))
        pair = self.store.pair(b"a")
        assert pair is not None
        self.assertEqual(KeyValue.FromString(pair).value, BIG + b"a")
        self.store.lend(None)
        self.assertRaises(NotLoadedError, self.store.pair, b"a")

    def test_needs_of_an_old_revision(self) -> None:
        """An old revision needs its whole range; the current one only what was evicted."""
        store = self.store
        self.assertEqual(list(store.needs(b"a", b"\0", 3)), [Need(b"a", b"\0", 3)])
        evicted = Need(b"a", b"", 0, (pack(2),))
        self.assertEqual(list(store.needs(b"a", b"", store.revision)), [evicted])
        # Within a write transaction today's revision is read before its first change, or after it as an old one.
        self.assertEqual(
            list(store.needs(b"a", b"", store.revision, writing=True)), [Need(b"a", b"", store.revision), evicted]
        )
        self.assertEqual(list(new_store().needs(b"a", b"")), [])

    def test_inverted_range_is_empty(self) -> None:
        """§2: a range_end not above the key is an empty range as of an old revision too."""
        need = Need(b"c", b"a", 3)
        self.assertEqual(fetch(self.backend, [need]).ranges, {(b"c", b"a", 3): []})


class BatchTests(SynchronousTestCase):
    """What the write-behind gets."""

    def test_batch_is_handed_over_once(self) -> None:
        """A batch carries the revision it stands for; what is handed over is not handed over again."""
        store = new_store()
        put(store, b"a")
        self.assertGreater(store.batch_bytes, 0)
        batch = store.take_batch()
        self.assertEqual(batch.records, {(Bucket.META, META_REVISION): b"2"})
        self.assertEqual(store.batch_bytes, 0)
        self.assertFalse(store.take_batch())

    def test_records_ride_along(self) -> None:
        """A record of a small table goes with the rows of its batch; None deletes."""
        store = new_store()
        store.record(Bucket.ALARMS, b"k", None)
        self.assertEqual(store.take_batch().records[Bucket.ALARMS, b"k"], None)


class CompactionTests(SynchronousTestCase):
    """§5, compaction."""

    def test_refused_revisions(self) -> None:
        """§5: not above the last compaction is compacted, above the current revision future; 0 passes once."""
        store = new_store()
        put(store, b"a")
        self.assertRaises(CompactedError, store.compact, -1)
        store.compact(0)
        self.assertRaises(CompactedError, store.compact, 0)
        self.assertRaises(FutureRevisionError, store.compact, 3)
        store.compact(2)
        self.assertEqual(store.revision, 2)
        self.assertEqual(store.batch.records[Bucket.META, META_COMPACTED], b"2")


class LoadTests(SynchronousTestCase):
    """A member that starts on its database."""

    def test_empty_database(self) -> None:
        """A new database is a new store."""
        store = load(MemoryBackend(), 0)
        self.assertEqual((store.revision, store.compacted, len(store.index)), (1, -1, 0))

    def test_revision_outlives_its_rows(self) -> None:
        """§1 after restart: when compaction took the last rows, the revision is still the old one."""
        world = World()
        world.send(PutRequest(key=b"a"))
        world.send(DeleteRangeRequest(key=b"a"))
        world.send(CompactionRequest(revision=3))
        world.compact_rows()
        world.restart()
        self.assertEqual((world.store.revision, world.store.compacted), (3, 3))

    def test_limit_holds_from_the_start(self) -> None:
        """Loading keeps no more values than the limit says, and counts a value that was overwritten only once."""
        for limit_bytes, resident in ((0, 1), (100, 2), (10_000, 3)):
            world = World()
            for key, value in ((b"a", BIG), (b"a", BIG + b"2"), (b"b", BIG), (b"small", b"")):
                world.send(PutRequest(key=key, value=value))
            world.flush()
            index = load(world.backend, limit_bytes).index
            self.assertEqual(sum(type(entry) is bytes for entry in index.entries.values()), resident)
            self.assertEqual(index.evicted, 3 - resident)


class HashTests(SynchronousTestCase):
    """§9 HashKV; the figures are real etcd 3.5.1's for this history."""

    def test_history_of_one_key(self) -> None:
        """§9: two puts, a compaction, a delete and two more compactions hash as in etcd at each step."""
        world = World()

        def hashed(revision: int = 0) -> int:
            world.flush()
            return hash_kv(world.backend, revision or world.store.revision, world.store.compacted, chunk=1)

        world.send(PutRequest(key=b"k", value=b"a"))
        world.send(PutRequest(key=b"k", value=b"b"))
        self.assertEqual(hashed(), 4201418841)
        world.send(CompactionRequest(revision=2))
        world.compact_rows()
        self.assertEqual(hashed(), 3704693457)  # revision 2 is still there, but would not be kept at 3
        world.send(DeleteRangeRequest(key=b"k"))
        self.assertEqual(hashed(), 1022910702)  # no key is live: all that is there counts
        world.send(CompactionRequest(revision=3))
        self.assertEqual(hashed(), 3803549770)
        world.send(CompactionRequest(revision=4))
        self.assertEqual(hashed(), 1084519789)

    def test_revision_below_zero(self) -> None:
        """§9: etcd takes a negative revision as it is, and finds nothing up to it."""
        world = World()
        world.send(PutRequest(key=b"k"))
        world.flush()
        self.assertEqual(hash_kv(world.backend, -5, -1), hash_kv(MemoryBackend(), 1, -1))

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 1 << 32), st.integers(0, 20), st.integers(0, 20), st.integers(1, 4))
    def test_hash_does_not_depend_on_deleted_rows(self, seed: int, compacted: int, above: int, chunk: int) -> None:
        """§9: the hash is the same before and after the background has deleted what a compaction drops."""
        world = World()
        requests = Requests(Random(seed))
        for _ in range(20):
            outcome(world.send, requests.dice.choice((requests.put, requests.delete))())
        compacted = min(compacted, world.store.revision)
        revision = min(compacted + above, world.store.revision)
        world.send(CompactionRequest(revision=compacted))
        world.flush()
        before = hash_kv(world.backend, revision, compacted)
        world.compact_rows()
        self.assertEqual(hash_kv(world.backend, revision, compacted, chunk), before)


class ListenerTests(SynchronousTestCase):
    """What watchers are told."""

    def test_every_revision_is_told_once_and_whole(self) -> None:
        """A transaction's changes come together, in order, with what was before it; reads and no-ops are not told."""
        told: list[tuple[int, list[Change]]] = []
        store = Store(KeyIndex(1 << 20))
        store.put(b"a", b"1", 0)
        store.end()
        before = store.pair(b"a")
        store.listener = lambda revision, changes: told.append((revision, changes))
        store.begin()
        store.put(b"a", b"2", 0)
        store.put(b"b", b"3", 0)
        store.delete(b"a")
        middle = KeyValue(key=b"a", create_revision=2, mod_revision=3, version=2, value=b"2").SerializeToString()
        added = store.pair(b"b")
        store.end()
        store.begin()
        store.delete(b"nothing")
        store.end()
        tombstone = KeyValue(key=b"a", mod_revision=3).SerializeToString()
        expected = [
            Change(b"a", middle, before, False),
            Change(b"b", added or b"", None, False),
            Change(b"a", tombstone, before, True),  # as of the revision before, as etcd's prev_kv
        ]
        self.assertEqual(told, [(3, expected)])


class RestoreTests(SynchronousTestCase):
    """Another member's state in place of ours."""

    def setUp(self) -> None:
        self.store = new_store()
        put(self.store, b"a")
        put(self.store, b"b", lease=7)

    def later(self) -> Store:
        """The same history, three revisions on."""
        other = new_store()
        for key in (b"a", b"b", b"c"):
            put(other, key)
        delete(other, b"a")
        other.compact(3)
        put(other, b"d")
        return other

    def test_it_becomes_the_other_one(self) -> None:
        """Keys, revision and compact revision are the other one's, and writing goes on from there."""
        told: list[int] = []
        self.store.listener = lambda revision, changes: told.append(revision)
        self.store.restore(self.later())
        self.assertEqual(keys_of(self.store.pairs(b"\0", FROM_KEY)), [b"b", b"c", b"d"])
        self.assertEqual((self.store.revision, self.store.compacted), (6, 3))
        self.assertEqual((bool(self.store.batch), self.store.batch_bytes), (False, 0))
        self.assertRaises(CompactedError, self.store.check_revision, 2)
        self.assertEqual(put(self.store, b"e"), 7)
        self.assertEqual([row.revision for row in self.store.take_batch().rows], [pack(7)])
        self.assertEqual(told, [7])

    def test_an_earlier_state_is_refused(self) -> None:
        """Neither revision nor compact revision ever goes back; nothing is changed then."""
        compacted = self.later()
        compacted.compacted = 5
        for ours, other in ((self.later(), self.store), (compacted, self.later())):
            before = ours.pairs(b"\0", FROM_KEY), ours.revision, ours.compacted, len(ours.batch.rows)
            self.assertRaises(InvariantError, ours.restore, other)
            after = ours.pairs(b"\0", FROM_KEY), ours.revision, ours.compacted, len(ours.batch.rows)
            self.assertEqual(after, before)

    def test_not_within_a_transaction(self) -> None:
        """An open transaction would lose its ground."""
        self.store.begin()
        self.store.put(b"k", b"", 0)
        self.assertRaises(InvariantError, self.store.restore, self.later())

    def test_a_database_that_is_ahead(self) -> None:
        """What a database lost by a compaction that the store does not know of yet is neither lent nor hashed."""
        world = World()
        for value in (b"1", b"2", b"3"):
            world.send(PutRequest(key=b"k", value=value))
        world.flush()
        needs = [Need(b"k", b"", revision) for revision in (2, 3)]
        self.assertEqual(len(fetch(world.backend, needs).ranges), 2)
        world.backend.write(Batch(records={(Bucket.META, META_COMPACTED): b"3"}))
        self.assertEqual(list(fetch(world.backend, needs).ranges), [(b"k", b"", 3)])
        self.assertRaises(CompactedError, hash_kv, world.backend, 4, -1)
        self.assertIsInstance(hash_kv(world.backend, 4, 3), int)
