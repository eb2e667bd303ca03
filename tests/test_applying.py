"""Committed entries on their way into the state: in order, once, and with what has to be waited for."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.station import Answer, HeldWorker
from twistedkv import statekeeper, waiting
from twistedkv.apply import META_APPLIED_INDEX, Alarms, Applier
from twistedkv.applying import Applying
from twistedkv.compaction import Sweeper
from twistedkv.errors import InvariantError, LeaseNotFoundError, MemberNotFoundError
from twistedkv.lease import Lessor
from twistedkv.members import MemberInfo, Membership
from twistedkv.metrics import Metrics
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest, RequestHeader
from twistedkv.pb.raft_pb2 import ConfChange, ConfChangeRemoveNode, ConfChangeV2
from twistedkv.pb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    Compare,
    PutRequest,
    PutResponse,
    RangeRequest,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from twistedkv.protocols.turn import Turn
from twistedkv.raft.messages import Entry, EntryType
from twistedkv.statekeeper import StateKeeper
from twistedkv.storage.backend import BackendError, Bucket
from twistedkv.storage.keyindex import KeyIndex
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.mvcc import Store
from twistedkv.txn import Done
from twistedkv.v2errors import V2Code, V2Error
from twistedkv.v2request import PlainSet, encode_entry
from twistedkv.waiting import WaitingRoom
from twistedkv.wire import HeaderEncoder

READ_OLD = TxnRequest(
    success=[
        RequestOp(request_put=PutRequest(key=b"new")),
        RequestOp(request_range=RangeRequest(key=b"k", revision=2)),
    ]
)


class Listener:
    """Hears what becomes of entries."""

    def __init__(self) -> None:
        self.term = 5
        self.sizes: list[int] = []
        self.terms: list[int] = []
        self.changed: list[int] = []
        self.batches: list[bool] = []

    def entry_applied(self, size_bytes: int) -> None:
        self.sizes.append(size_bytes)

    def term_began(self, term: int) -> None:
        self.terms.append(term)

    def member_changed(self, change: ConfChange) -> None:
        self.changed.append(change.node_id)

    def batch_applied(self, *, all_of_it: bool) -> None:
        self.batches.append(all_of_it)


class HalfwayApplier(Applier):
    """Refuses a request after it has begun to change the state, which the real one never does."""

    def apply(self, request: InternalRaftRequest) -> Done:
        self.store.begin()
        self.store.put(b"half", b"", 0)
        raise LeaseNotFoundError


class ApplyingTests(SynchronousTestCase):
    """A state in memory over a database that is as slow as a test says."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.worker = HeldWorker()
        self.backend = MemoryBackend()
        self.make(Applier)

    def make(self, applier_class: type[Applier]) -> None:
        """Put the parts together."""
        self.failures: list[Failure] = []
        self.listener = Listener()
        self.waiting = WaitingRoom(7.0)
        self.store = Store(KeyIndex(0))  # holds no values: they are in the database
        self.applier = applier_class(
            self.store, Lessor(2), Alarms(), Membership({1: MemberInfo(1, ("http://192.0.2.1:1",), "m1")})
        )
        turn = Turn(self.clock)
        self.applying = Applying(
            self.applier,
            0,
            0,
            self.waiting,
            HeaderEncoder(9, 1),
            turn,
            self.clock,
            self.listener,
            self.failures.append,
        )
        self.state = StateKeeper(
            self.store,
            self.applier.v2.records,
            self.backend,
            self.worker,  # type: ignore[arg-type]
            lambda: (self.applying.index, self.applying.term),
            self.clock,
            Metrics(),
            self.failures.append,
        )
        self.sweeper = Sweeper(self.store, self.state.read, self.clock, -1, Metrics())
        self.applying.connect(self.state, self.sweeper)
        self.next = 1

    def entry(self, data: bytes = b"", term: int = 2, kind: EntryType = EntryType.NORMAL) -> Entry:
        entry = Entry(term, self.next, data, kind)
        self.next += 1
        return entry

    def request(self, **fields: Any) -> tuple[Entry, Answer]:
        """An entry that somebody waits for."""
        answer, request_id = Answer(), self.next
        self.waiting.add(request_id, answer, 0.0)
        request = InternalRaftRequest(header=RequestHeader(ID=request_id), **fields)
        return self.entry(request.SerializeToString()), answer

    def put(self, key: bytes = b"k", **fields: Any) -> tuple[Entry, Answer]:
        return self.request(put=PutRequest(key=key, **fields))

    def apply(self, *requests: tuple[Entry, Answer]) -> list[Answer]:
        self.applying.add([entry for entry, _ in requests])
        return [answer for _, answer in requests]

    def test_in_order_and_answered(self) -> None:
        """Entries are carried out in order; each waiter gets its answer with header, the log's index moves along."""
        first, second = self.apply(self.put(), self.put())
        self.assertEqual((first.revision, second.revision), (2, 3))
        assert second.message is not None
        header = PutResponse.FromString(second.message).header
        self.assertEqual((header.cluster_id, header.member_id, header.raft_term), (9, 1, 5))
        self.assertEqual((self.applying.index, self.applying.term, len(self.applying)), (2, 2, 0))
        self.assertEqual((len(self.listener.sizes), self.listener.batches), (2, [True]))

    def test_entries_that_nobody_waits_for(self) -> None:
        """What other members asked for is carried out as well."""
        entry = self.entry(InternalRaftRequest(put=PutRequest(key=b"k")).SerializeToString())
        refused = self.entry(InternalRaftRequest(put=PutRequest(key=b"k", lease=7)).SerializeToString())
        self.applying.add([entry, refused])
        self.assertEqual((self.store.revision, self.applying.index), (2, 2))

    def test_the_first_entry_of_a_term(self) -> None:
        """The empty entry by which a leader begins is told of once; other empty ones mean nothing."""
        self.applying.add([self.entry(term=2), self.entry(term=2), self.entry(term=4)])
        self.assertEqual(self.listener.terms, [2, 4])
        self.assertEqual((self.applying.index, self.applying.term), (3, 4))

    def test_refused(self) -> None:
        """What the state refuses is answered with its error and changes nothing; what follows is carried out."""
        refused, after = self.apply(self.put(lease=9), self.put())
        self.assertIsInstance(refused.error, LeaseNotFoundError)
        self.assertEqual((after.revision, self.applying.index), (2, 2))

    def test_what_has_to_be_fetched(self) -> None:
        """A transaction that reads what only the database has waits for it, and what is behind it waits too."""
        self.apply(self.put(value=b"old"), self.put(value=b"new"))
        self.worker.held = True
        txn, put = self.apply(self.request(txn=READ_OLD), self.put())
        (last,) = self.apply(self.put())
        self.assertFalse(txn.done or put.done)
        self.assertEqual((self.applying.index, len(self.applying)), (2, 3))
        self.assertEqual(self.listener.batches, [True, False])
        self.worker.release()
        assert txn.message is not None
        self.assertEqual(TxnResponse.FromString(txn.message).responses[1].response_range.kvs[0].value, b"old")
        self.assertEqual((put.revision, last.revision), (5, 6))
        self.assertEqual(self.listener.batches, [True, False, True])
        self.assertEqual(len(self.listener.sizes), 5)

    def test_evicted_values(self) -> None:
        """A put that is to give the value before waits for one that is not in memory."""
        before = b"before" + bytes(1000)
        self.apply(self.put(value=before))
        self.clock.advance(0.1)  # written behind
        self.store.index.evict()
        self.worker.held = True
        (answer,) = self.apply(self.put(prev_kv=True))
        self.assertFalse(answer.done)
        self.worker.release()
        assert answer.message is not None
        self.assertEqual(PutResponse.FromString(answer.message).prev_kv.value, before)

    def test_a_transaction_that_needs_nothing(self) -> None:
        """A transaction on what is in memory is carried out at once."""
        compare = Compare(key=b"k", target=Compare.VERSION, version=0)
        (answer,) = self.apply(self.request(txn=TxnRequest(compare=[compare])))
        self.assertIsNotNone(answer.message)

    def test_a_database_that_is_far_behind(self) -> None:
        """When too much is on its way to the database nothing more is applied until it is there."""
        self.patch(statekeeper, "BACKLOG_ROWS", 2)
        self.worker.held = True
        first = self.apply(*[self.put() for _ in range(3)])
        second = self.apply(self.put(), self.put())
        self.assertTrue(all(answer.done for answer in first))
        self.assertFalse(any(answer.done for answer in second))
        self.worker.step()
        self.assertEqual([answer.revision for answer in second], [5, 6])

    def test_a_database_that_fails(self) -> None:
        """When what an entry needs cannot be read the member stops, rather than go on without it."""
        self.apply(self.put(), self.put())

        def refuse(*_: Any) -> Any:
            raise BackendError("the disk is gone")

        self.patch(self.backend, "rows", refuse)
        self.patch(self.backend, "range_at", refuse)
        (answer,) = self.apply(self.request(txn=READ_OLD))
        self.assertFalse(answer.done)
        self.assertEqual([failure.type for failure in self.failures], [BackendError])

    def test_the_end(self) -> None:
        """After the end nothing is applied, not even what comes back from the database."""
        self.apply(self.put(), self.put())
        self.worker.held = True
        txn, put = self.apply(self.request(txn=READ_OLD), self.put())
        self.applying.stop()
        self.worker.release()
        self.assertFalse(txn.done or put.done)
        self.assertEqual((self.applying.index, self.failures), (2, []))

    def test_the_end_while_the_database_is_behind(self) -> None:
        """Nor what waited for the database to catch up."""
        self.patch(statekeeper, "BACKLOG_ROWS", 0)
        self.worker.held = True
        self.apply(self.put())
        (put,) = self.apply(self.put())
        self.applying.stop()
        self.worker.release()
        self.assertFalse(put.done)

    def test_interrupted(self) -> None:
        """For a snapshot what waits is dropped, at once if nothing is under way."""
        self.successResultOf(self.applying.interrupt())
        (after,) = self.apply(self.put())
        self.assertTrue(after.done)

    def test_interrupted_while_something_is_fetched(self) -> None:
        """What is under way is let come to its end and then dropped, with all behind it; nothing of it is applied."""
        self.apply(self.put(), self.put())
        self.worker.held = True
        txn, put = self.apply(self.request(txn=READ_OLD), self.put())
        idle = self.applying.interrupt()
        self.assertEqual(len(self.applying), 1)
        self.assertNoResult(idle)
        self.worker.release()
        self.successResultOf(idle)
        self.assertFalse(txn.done or put.done)
        self.assertEqual(self.applying.index, 2)
        self.applying.restored(50, 4)
        self.assertEqual((self.applying.index, self.applying.term, len(self.applying)), (50, 4, 0))
        self.next = 51
        (after,) = self.apply(self.put())
        self.assertTrue(after.done)
        self.assertEqual(self.applying.index, 51)

    def test_interrupted_while_the_database_catches_up(self) -> None:
        """A snapshot waits for the database too, and what waited behind it is dropped."""
        self.patch(statekeeper, "BACKLOG_ROWS", 0)
        self.worker.held = True
        self.apply(self.put())
        (put,) = self.apply(self.put())
        idle = self.applying.interrupt()
        self.assertNoResult(idle)
        self.worker.release()
        self.successResultOf(idle)
        self.assertFalse(put.done)

    def test_interrupted_and_ended(self) -> None:
        """An end in the middle leaves nothing that fires."""
        self.apply(self.put(), self.put())
        self.worker.held = True
        self.apply(self.request(txn=READ_OLD))
        idle = self.applying.interrupt()
        self.applying.stop()
        self.worker.release()
        self.assertNoResult(idle)
        self.assertEqual(self.failures, [])

    def test_changes_of_the_members(self) -> None:
        """A change is carried out and told of; one that does not fit is answered with its error and told to nobody."""
        done: list[Any] = []
        for node_id in (1, 9):
            answer = Answer()
            self.waiting.add(100 + node_id, answer, 0.0)
            change = ConfChange(id=100 + node_id, type=ConfChangeRemoveNode, node_id=node_id)
            self.applying.add([self.entry(change.SerializeToString(), 3, EntryType.CONF_CHANGE)])
            done.append(answer.message if answer.error is None else type(answer.error))
        self.assertEqual(done, [b"", MemberNotFoundError])
        self.assertEqual((self.listener.changed, self.applier.membership.members), ([1], {}))
        self.assertEqual((self.applying.index, self.applying.term), (2, 3))

    def test_changes_that_nobody_waits_for(self) -> None:
        """Changes that other members asked for, and those that are Raft's alone, move the index."""
        for node_id in (9, 1):
            change = ConfChange(id=100 + node_id, type=ConfChangeRemoveNode, node_id=node_id)
            self.applying.add([self.entry(change.SerializeToString(), 2, EntryType.CONF_CHANGE)])
        joint = ConfChangeV2().SerializeToString()
        self.applying.add([self.entry(joint, 2, EntryType.CONF_CHANGE_V2)])
        self.assertEqual((self.listener.changed, self.applying.index), ([1], 3))

    def test_requests_of_etcd_35(self) -> None:
        """A member's attributes in their old form are carried out and answered."""
        answer = Answer()
        self.waiting.add(7, answer, 0.0)
        old = Request(ID=7, Method="PUT", Path=b"/0/members/1/attributes", Val=b'{"name":"new"}')
        self.applying.add([self.entry(old.SerializeToString())])
        self.assertEqual(self.applier.membership.members[1].name, "new")
        self.assertIsNotNone(answer.message)
        self.assertEqual((self.store.revision, self.applying.index), (1, 1))

    def v2(self, method: str, path: bytes = b"/1/k", **fields: Any) -> tuple[Entry, Answer]:
        """An entry for a key of the v2 API that somebody waits for."""
        answer, request_id = Answer(), self.next
        self.waiting.add(request_id, answer, 0.0)
        return self.entry(Request(ID=request_id, Method=method, Path=path, **fields).SerializeToString()), answer

    def test_keys_of_the_v2_api(self) -> None:
        """Who asked for a change gets its event, or by which rule it was refused; the passing of time has no event."""
        good, bad, time = self.apply(self.v2("PUT"), self.v2("DELETE", b"/1/none"), self.v2("SYNC", Time=1))
        assert good.event is not None
        self.assertEqual((good.event.node.key, good.event.index), ("/1/k", 1))
        self.assertIsInstance(bad.error, V2Error)
        self.assertEqual(time.message, b"")
        self.applying.add([self.entry(Request(ID=99, Method=each).SerializeToString()) for each in ("PUT", "SYNC")])
        self.assertEqual((self.applying.index, self.store.revision, len(self.waiting)), (5, 1, 0))

    def test_keys_of_the_v2_api_are_kept(self) -> None:
        """What changed in the tree goes to the database with the index that it stands for, though no key of v3 did."""
        self.apply(self.v2("PUT", Val=b"v"))
        self.clock.advance(1)
        self.assertEqual(self.backend.records(Bucket.META)[META_APPLIED_INDEX], b"1")
        self.assertIn(b"/1/k", self.backend.records(Bucket.DIRECTORY))
        self.apply(self.v2("DELETE"))
        self.clock.advance(1)
        self.assertEqual(self.backend.records(Bucket.META)[META_APPLIED_INDEX], b"2")
        self.assertNotIn(b"/1/k", self.backend.records(Bucket.DIRECTORY))

    def plain(
        self, path: str = "/1/k", value: str = "v", *, noted: bool = True, id_: int | None = None
    ) -> tuple[Entry, Answer]:
        """An entry that sets a file, which somebody waits for, as this member proposes it."""
        answer, request_id = Answer(), id_ or self.next
        self.waiting.add(request_id, answer, 0.0)
        path_, value_ = (each.encode("utf-8", "surrogateescape") for each in (path, value))
        data = encode_entry(request_id, Request(Method="PUT", Path=path_, Val=value_ or None).SerializeToString())
        if noted:
            self.waiting.note_set(data, PlainSet(request_id, path, value))
        return self.entry(bytes(bytearray(data))), answer  # it comes back over a network, or from a disk

    def outcome(self, sets: list[tuple[str, str]], *, noted: bool) -> object:
        """What comes of these on a new member: answers, tree, statistics, what is to be kept, who still waits."""
        self.make(Applier)
        answers = self.apply(*[self.plain(path, value, noted=noted) for path, value in sets])
        told: list[object] = []
        for answer in answers:
            event, error = answer.event, answer.error
            if event is not None:
                told.append((event.action, event.node, event.previous, event.etcd_index, event.refresh, answer.error))
            else:
                assert isinstance(error, V2Error)
                told.append((error.code, error.cause, error.index, error.status, answer.message))
        tree = self.applier.v2.directory
        shown = (tree.get("/", True, True).node, tree.index, tree.changed, tree.counters.counts)
        listener = self.listener
        heard = (listener.sizes, listener.terms, listener.batches, len(self.waiting), self.failures)
        return told, shown, heard, (self.applying.index, self.applying.term, self.store.revision)

    def test_a_noted_set_needs_no_decoding(self) -> None:
        """An entry that this member has proposed is carried out by what was noted of it, once; then by what it says."""
        entry, answer = self.plain()
        self.waiting.note_set(entry.data, PlainSet(1, "/1/noted", "n"))
        self.applying.add([entry])
        self.waiting.add(1, again := Answer(), 0.0)
        self.applying.add([self.entry(entry.data)])
        assert answer.event is not None
        assert again.event is not None
        self.assertEqual([each.event.node.key for each in (answer, again) if each.event], ["/1/noted", "/1/k"])
        self.assertIsNone(self.waiting.take_set(entry.data))
        self.assertEqual((self.applying.index, self.applying.term, len(self.waiting)), (2, 2, 0))

    def test_noted_sets_are_as_decoded_ones(self) -> None:
        """In answers and refusals, tree, statistics, sizes and indexes."""
        sets = [
            ("/1/k", "v"),
            ("/1/k", "v"),
            ("/1/k", ""),
            ("/1/d/e/f", "1"),
            ("/1/d/e", "a directory is there"),
            ("/1/k/below", "a file is above"),
            ("/1", "the root"),
            ("/1/_hidden", "2"),
            ("/1/\udcff\xe9", "\udcfe\u20ac"),
            ("/1//k/./x/../", "3"),
            ("/1/long", "x" * 5000),
        ]
        decoded = self.outcome(sets, noted=False)
        self.assertEqual(self.outcome(sets, noted=True), decoded)
        self.assertEqual(len(self.waiting), 0)
        self.patch(waiting, "_MOST_SETS", 4)
        self.assertEqual(self.outcome(sets, noted=True), decoded)
        self.assertEqual(self.applier.v2.directory.counters.counts["setsFail"], 3)

    def test_refused_sets_are_told_alike(self) -> None:
        """A set below a file, of a directory, and of the root fails by the same rule, be it noted or not."""
        for path, code, cause in (
            ("/1/d", V2Code.NOT_FILE, "/1/d"),
            ("/1/d/f/below/it", V2Code.NOT_DIR, "/1/d/f"),
            ("/1", V2Code.ROOT_READ_ONLY, "/"),
        ):
            for noted in (True, False):
                self.make(Applier)
                (made, refused) = self.apply(self.plain("/1/d/f"), self.plain(path, noted=noted))
                self.assertIsNotNone(made.event)
                assert isinstance(refused.error, V2Error)
                self.assertEqual((refused.error.code, refused.error.cause, refused.error.index), (code, cause, 1))
                self.assertEqual((self.applying.index, len(self.waiting)), (2, 0))

    def test_sets_that_look_alike_are_told_apart(self) -> None:
        """Each by its id, whether or not it was noted, and in the order of the log."""
        entries, answers = zip(*[self.plain(id_=70 + number, noted=number != 2) for number in range(4)], strict=True)
        self.applying.add([entries[number] for number in (3, 0, 2, 1)])
        self.assertEqual([answer.event and answer.event.index for answer in answers], [2, 4, 3, 1])
        self.assertEqual([self.waiting.take_set(entry.data) for entry in entries], [None] * 4)

    def test_a_noted_set_that_comes_twice(self) -> None:
        """A proposal that was sent on twice is carried out twice, by all members alike, and answered once."""
        entry, answer = self.plain()
        self.applying.add([entry, self.entry(entry.data)])
        assert answer.event is not None
        self.assertEqual((answer.event.index, self.applier.v2.directory.index, self.applying.index), (1, 2, 2))

    def test_a_noted_set_that_nobody_waits_for_any_more(self) -> None:
        """It is carried out as if somebody did."""
        entry, answer = self.plain()
        self.assertIs(self.waiting.take_v2(1), answer)
        self.applying.add([entry])
        self.assertFalse(answer.done)
        self.assertEqual((self.applier.v2.directory.index, self.applying.index), (1, 1))

    def test_noted_sets_behind_what_has_to_be_fetched(self) -> None:
        """They wait with it, and are carried out from their notes then; those dropped for a snapshot are not."""
        self.apply(self.put(value=b"old"), self.put(value=b"new"))
        self.worker.held = True
        first = [self.request(txn=READ_OLD), self.plain("/1/a")]
        txn, waits = self.apply(*first)
        self.assertFalse(txn.done or waits.done)
        self.worker.release()
        self.assertTrue(txn.done and waits.done)
        self.worker.held = True
        second = [self.request(txn=READ_OLD), self.plain("/1/b")]
        _, dropped = self.apply(*second)
        self.applying.interrupt()
        self.worker.release()
        self.assertFalse(dropped.done)
        self.assertIsNone(self.applier.v2.directory.node("/1/b"))
        self.assertIsNone(self.waiting.take_set(first[1][0].data))

    def test_a_compaction_begins_to_sweep(self) -> None:
        """An applied compaction has its rows deleted behind the scenes; whoever asked is answered before that."""
        self.apply(self.put(), self.put(), self.put())
        self.worker.held = True
        (answer,) = self.apply(self.request(compaction=CompactionRequest(revision=4)))
        assert answer.message is not None
        self.assertEqual(CompactionResponse.FromString(answer.message).header.revision, 4)
        swept = self.sweeper.swept(4)
        self.assertNoResult(swept)
        self.worker.release()
        self.clock.advance(0.01)
        self.successResultOf(swept)

    def test_an_entry_that_is_none(self) -> None:
        """An entry that cannot be read stops the member: others may have read it."""
        with self.assertRaises(InvariantError):
            self.applying.add([self.entry(b"\xff")])
        with self.assertRaises(InvariantError):
            self.make(Applier)
            self.applying.add(
                [self.entry(Request(ID=1, Method="PUT", Path=b"/0/members/1/attributes").SerializeToString())]
            )

    def test_a_request_that_fails_half_way(self) -> None:
        """A request that is refused after it has changed the state stops the member."""
        self.make(HalfwayApplier)
        with self.assertRaises(InvariantError):
            self.apply(self.put())
        self.assertEqual(len(self.waiting), 1)  # is told that the member stops, like everybody

    def test_how_long_a_batch_takes(self) -> None:
        """The time of each batch is noted, so that a slow one can be told of."""
        clock = self.clock

        class Slow(Answer):
            def reply(self, message: bytes) -> None:
                clock.advance(0.25)

        self.waiting.add(self.next, Slow(), 0.0)
        request = InternalRaftRequest(header=RequestHeader(ID=self.next), put=PutRequest(key=b"k"))
        self.applying.add([self.entry(request.SerializeToString())])
        self.assertEqual(self.applying.last_batch_s, 0.25)
