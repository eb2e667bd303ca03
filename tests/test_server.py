"""The member on a clock of ours, with the real Raft node and a real log in a scratch directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.nopeers import NoPeers
from tests.station import Answer, RefusingMemory, Station, UnreadableMemory
from tests.workers import SteppedWorker
from twistedkv import applying, server, statekeeper
from twistedkv.errors import (
    KVError,
    NoSpaceError,
    RequestTimeoutError,
    RequestTooLargeError,
    StoppedError,
    TooManyRequestsError,
)
from twistedkv.members import MemberInfo
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.raft_pb2 import ConfChange, ConfChangeRemoveNode
from twistedkv.pb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    LeaseGrantRequest,
    PutRequest,
    PutResponse,
    RangeRequest,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from twistedkv.server import Member
from twistedkv.storage.backend import BackendError, Bucket, Size
from twistedkv.storage.mvcc import Loan
from twistedkv.v2request import decode_entry

ME = 7


class MemberCase(SynchronousTestCase):
    """A member alone."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.station = Station(ME, Path(self.mktemp()), [MemberInfo(ME, ("https://127.0.0.1:2380",), "default")])
        self.disk = self.station.disk
        self.failures = self.station.failures

    def start(self) -> Member:
        """A member on what the directory and the backend hold, ready to serve."""
        member = self.station.open(self.clock, NoPeers)
        member.start()
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertTrue(member.may_read)
        return member

    def stop(self, member: Member) -> None:
        self.successResultOf(Deferred.fromCoroutine(member.stop()))

    def grant(self, lease_id: int, ttl_s: int) -> None:
        self.station.propose(InternalRaftRequest(lease_grant=LeaseGrantRequest(ID=lease_id, TTL=ttl_s)))


class MemberTests(MemberCase):
    """Writes through Raft, the log and the state."""

    def test_a_put_is_answered_with_its_revision(self) -> None:
        """A put comes back with etcd's header: ids, the new revision, the term."""
        self.start()
        answer = self.station.put(b"k")
        self.assertFalse(answer.done)
        self.clock.advance(0)
        assert answer.message is not None
        header = PutResponse.FromString(answer.message).header
        self.assertEqual((header.cluster_id, header.member_id, header.revision, header.raft_term), (9, ME, 2, 2))

    def test_the_puts_of_a_turn_share_one_sync(self) -> None:
        """A hundred puts of one turn of the reactor cost one write and one sync."""
        self.start()
        before = self.disk.syncs
        answers = [self.station.put(b"%d" % number) for number in range(100)]
        self.clock.advance(0)
        self.assertEqual(self.disk.syncs, before + 1)
        self.assertEqual([answer.revision for answer in answers], list(range(2, 102)))

    def test_nothing_is_answered_before_it_is_durable(self) -> None:
        """While the disk works no put is answered and no reader sees it; what arrives meanwhile is the next batch."""
        self.station.wal_worker = worker = SteppedWorker()
        member = self.start()
        member._writer.average_sync_s = 1.0  # the disk was slow so far, so it is waited for on its thread
        first = self.station.put(b"a")
        self.clock.advance(0)
        second, third = self.station.put(b"b"), self.station.put(b"c")
        self.clock.advance(0)
        self.assertEqual(len(worker.queue), 1)
        self.assertFalse(first.done)
        self.assertIsNone(self.station.get(b"a"))
        worker.step()
        self.assertEqual(first.revision, 2)
        self.assertFalse(second.done)
        self.assertEqual(len(worker.queue), 1)
        worker.step()
        self.assertEqual((second.revision, third.revision), (3, 4))

    def test_acknowledged_writes_survive_a_crash(self) -> None:
        """A member that just vanishes has every answered write when it is back, and goes on with the next revision."""
        self.start()
        for number in range(10):
            self.station.put(b"%d" % number)
        self.clock.advance(0)
        self.station.crash()  # the database has none of it yet
        again = self.start()
        self.assertEqual(again.revision, 11)
        self.assertIsNotNone(self.station.get(b"9"))
        answer = self.station.put(b"next")
        self.clock.advance(0)
        self.assertEqual(answer.revision, 12)

    def test_a_plain_set_of_a_v2_key_is_not_decoded(self) -> None:
        """The member that proposed it knows what its entry says; after a crash it is read from the log."""
        decoded: list[bytes] = []

        def decode(data: bytes) -> InternalRaftRequest | Request:
            decoded.append(data)
            return decode_entry(data)

        self.patch(applying, "decode_entry", decode)
        member = self.start()
        decoded.clear()
        before = member.directory.index
        answers = [Answer() for _ in range(3)]
        fields = Request(Method="PUT", Path=b"/1/k", Val=b"v").SerializeToString()
        for answer, plain in zip(answers, (("/1/k", "v"), None, ("/1/k", "v")), strict=True):
            member.propose_v2(fields, answer, plain=plain)
        self.clock.advance(0)
        self.assertEqual([answer.event and answer.event.index - before for answer in answers], [1, 2, 3])
        self.assertEqual(len(decoded), 1)
        shown = member.directory.get("/", True, True).node
        self.station.crash()
        again = self.start()
        self.assertEqual(again.directory.get("/", True, True).node, shown)
        self.assertGreater(len(decoded), 3)

    def test_nothing_is_applied_twice(self) -> None:
        """What the database has already is not applied again from the log."""
        self.start()
        self.station.put(b"a")
        self.clock.advance(0)
        self.clock.advance(1)  # written behind
        self.station.put(b"b")
        self.clock.advance(0)
        self.station.crash()
        again = self.start()
        self.assertEqual(again.revision, 3)
        self.stop(again)
        self.assertEqual(len(self.station.backend.scan(0, 1 << 62, 100)), 2)

    def test_a_full_disk_refuses_and_loses_nothing(self) -> None:
        """On a full disk what waits is tried again, new writes get etcd's error, and all goes on when there is room."""
        member = self.start()
        self.disk.full = True
        waiting = self.station.put(b"a")
        self.clock.advance(0)
        refused = self.station.put(b"b")
        self.assertIsInstance(refused.error, NoSpaceError)
        self.assertFalse(waiting.done)
        self.assertIsNotNone(member.disk_trouble)
        self.disk.full = False
        self.clock.advance(1)
        self.assertEqual(waiting.revision, 2)
        self.assertIsNone(member.disk_trouble)
        after = self.station.put(b"c")
        self.clock.advance(0)
        self.assertEqual(after.revision, 3)
        self.assertEqual(self.failures, [])

    def test_a_failed_sync_stops_the_member(self) -> None:
        """After a failed fsync nobody knows what is on the disk: the member answers nothing and ends."""
        self.start()
        self.disk.broken = True
        answer = self.station.put(b"a")
        self.clock.advance(0)
        self.assertIsInstance(answer.error, StoppedError)
        self.assertEqual(len(self.failures), 1)
        self.flushLoggedErrors()
        late = self.station.put(b"b")
        self.assertIsInstance(late.error, StoppedError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_requests_time_out(self) -> None:
        """A write that the disk does not get done in 7 s is answered with etcd's time-out."""
        self.station.wal_worker = SteppedWorker()
        member = self.start()
        member._writer.average_sync_s = 1.0
        answer = self.station.put(b"a")
        self.clock.pump([0.1] * 69)
        self.assertFalse(answer.done)
        self.clock.pump([0.1] * 3)
        self.assertIsInstance(answer.error, RequestTimeoutError)

    def test_requests_too_large_are_refused(self) -> None:
        """A request over --max-request-bytes is refused before it is logged."""
        self.station.options = {"max-request-bytes": "1000"}
        self.start()
        self.assertIsInstance(self.station.put(b"k", b"v" * 1000).error, RequestTooLargeError)

    def test_stop_writes_everything_behind_and_refuses_the_rest(self) -> None:
        """After a stop the database has all of it, and what waits or comes is told that the server stopped."""
        member = self.start()
        self.station.put(b"a")
        self.clock.advance(0)
        waiting = self.station.put(b"b")
        self.stop(member)
        self.assertIsInstance(waiting.error, StoppedError)
        self.assertIsInstance(self.station.put(b"c").error, StoppedError)
        self.assertEqual([row.key for row in self.station.backend.scan(0, 1 << 62, 100)], [b"a"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_does_not_wait_for_a_database_that_refuses(self) -> None:
        """With a database that takes no writes a stop ends in 10 s, and the next start has all of it from the log."""
        backend = self.station.backend = RefusingMemory()
        member = self.start()
        backend.refuses = True
        answer = self.station.put(b"a")
        self.clock.advance(0)
        self.assertEqual(answer.revision, 2)
        stopped = Deferred.fromCoroutine(member.stop())
        self.clock.pump([1.0] * 9)
        self.assertNoResult(stopped)
        self.clock.advance(2)
        self.successResultOf(stopped)
        self.flushLoggedErrors()
        backend.refuses = False
        self.start()
        self.assertIsNotNone(self.station.get(b"a"))

    def test_a_stop_on_a_full_disk(self) -> None:
        """A member whose log has no room stops in order, and has everything that was answered when it is back."""
        member = self.start()
        for _ in range(2):
            self.station.put(b"a")
            self.clock.advance(0)
        self.disk.full = True
        waiting = self.station.put(b"b")
        self.clock.advance(0)
        self.stop(member)
        self.assertIsInstance(waiting.error, StoppedError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.disk.full = False
        self.assertEqual(self.start().revision, 3)

    def test_the_quota_raises_the_alarm(self) -> None:
        """A write beyond the quota is refused and raises NOSPACE; from then on the log refuses puts, not deletes."""
        self.station.options = {"quota-backend-bytes": "10000"}
        member = self.start()
        with self.assertRaises(NoSpaceError):
            member.check_quota(10_000)
        self.clock.advance(0)
        self.assertEqual([alarm.memberID for alarm in member.alarms.listed()], [ME])
        refused = self.station.put(b"k")
        self.clock.advance(0)
        self.assertIsInstance(refused.error, NoSpaceError)

    def test_evicted_values_are_fetched_before_a_transaction_needs_them(self) -> None:
        """With no room for values in memory, a transaction that compares and returns them sees the right ones."""
        self.station.value_cache_bytes = 0
        member = self.start()
        for number in range(5):
            self.station.put(b"%d" % number, b"value %d" % number + bytes(1000))
        self.clock.advance(0)
        self.assertEqual(member.store.index.evicted, 5)
        request = TxnRequest(
            compare=[Compare(key=b"3", target=Compare.VALUE, value=b"value 3" + bytes(1000))],
            success=[
                RequestOp(request_range=RangeRequest(key=b"1")),
                RequestOp(request_put=PutRequest(key=b"2", value=b"new", prev_kv=True)),
            ],
        )
        answer, after = Answer(), Answer()
        member.propose(InternalRaftRequest(txn=request).SerializeToString(), answer)
        member.propose(InternalRaftRequest(put=PutRequest(key=b"2")).SerializeToString(), after)
        self.clock.advance(0)
        self.clock.advance(0)
        assert answer.message is not None
        response = TxnResponse.FromString(answer.message)
        self.assertTrue(response.succeeded)
        self.assertEqual(response.responses[0].response_range.kvs[0].value, b"value 1" + bytes(1000))
        self.assertEqual(response.responses[1].response_put.prev_kv.value, b"value 2" + bytes(1000))
        self.assertEqual(after.revision, response.header.revision + 1)

    def test_old_revisions_in_a_writing_transaction(self) -> None:
        """A transaction may read an old revision and write in one go."""
        member = self.start()
        for value in (b"old", b"new"):
            self.station.put(b"k", value)
        self.clock.advance(0)
        request = TxnRequest(
            success=[
                RequestOp(request_put=PutRequest(key=b"x")),
                RequestOp(request_range=RangeRequest(key=b"k", revision=2)),
                RequestOp(request_range=RangeRequest(key=b"x", revision=3)),
            ]
        )
        answer = Answer()
        member.propose(InternalRaftRequest(txn=request).SerializeToString(), answer)
        self.clock.advance(0)
        assert answer.message is not None, answer.error
        responses = TxnResponse.FromString(answer.message).responses
        self.assertEqual(responses[1].response_range.kvs[0].value, b"old")
        self.assertEqual(responses[2].response_range.count, 0)

    def test_the_log_is_let_go_behind_a_durable_database(self) -> None:
        """Every --snapshot-count entries the log's old segments go, and the member still starts from what is left."""
        self.station.options = {"snapshot-count": "100"}
        member = self.start()
        for number in range(1_000):
            self.station.put(b"%d" % (number % 50), b"v" * 300)
            self.clock.advance(0)
        for _ in range(4):
            self.clock.advance(0.5)
        self.assertLessEqual(len(list(self.station.directory.glob("*.wal"))), 3)
        revision = member.revision
        self.stop(member)
        self.assertEqual(self.start().revision, revision)

    def test_a_physical_compaction_waits_for_the_rows(self) -> None:
        """A physical compaction is answered when the rows are gone, a plain one at once."""
        member = self.start()
        for _ in range(12_500):
            self.station.put(b"k")
        self.clock.advance(0)
        answer = Answer()
        compaction = CompactionRequest(revision=12_400, physical=True)
        member.propose_compaction(InternalRaftRequest(compaction=compaction).SerializeToString(), answer)
        self.clock.advance(0)
        self.assertFalse(answer.done)
        self.clock.pump([0.01] * 5)
        self.assertIsNotNone(answer.message)
        self.assertEqual(len(self.station.backend.scan(0, 1 << 62, 100_000)), 103)

    def test_errors_of_the_state_reach_the_caller(self) -> None:
        """What the state refuses is answered with its error and takes no revision."""
        member = self.start()
        refused = self.station.put(b"k", lease=5)
        self.clock.advance(0)
        assert isinstance(refused.error, KVError)
        self.assertEqual(refused.error.text, "etcdserver: requested lease not found")
        self.assertEqual(member.revision, 1)

    def test_a_lease_ends_and_takes_its_keys(self) -> None:
        """Whoever stops renewing loses the keys within a second of the lease's end, and not before it."""
        member = self.start()
        self.grant(7, 5)
        self.station.put(b"k", lease=7)
        self.clock.advance(0)
        self.clock.pump([0.1] * 48)
        self.assertIsNotNone(self.station.get(b"k"))
        self.clock.pump([0.1] * 9)
        self.assertIsNone(self.station.get(b"k"))
        self.assertEqual((member.revision, member.leases.expired, len(member.lessor)), (3, 1, 0))

    def test_leases_survive_a_crash_and_never_end_early(self) -> None:
        """After a crash a lease begins anew, with an election timeout on top, whether the database knew it or not."""
        self.start()
        self.grant(7, 5)
        self.station.put(b"a", lease=7)
        self.clock.advance(0)
        self.clock.advance(1)  # written behind
        self.grant(8, 5)
        self.station.put(b"b", lease=8)
        self.clock.advance(0)
        self.clock.pump([0.1] * 35)
        self.station.crash()
        again = self.start()
        self.assertEqual((again.lessor.keys(7), again.lessor.keys(8)), ({b"a"}, {b"b"}))
        self.clock.pump([0.1] * 59)
        self.assertIsNotNone(self.station.get(b"a"))
        self.assertIsNotNone(self.station.get(b"b"))
        self.clock.pump([0.1] * 8)
        self.assertIsNone(self.station.get(b"a"))
        self.assertIsNone(self.station.get(b"b"))
        self.stop(again)
        self.assertEqual(self.station.backend.records(Bucket.LEASES), {})

    def test_ids_of_leases_are_positive(self) -> None:
        """An id that the server chooses is never 0 or negative, and never the same."""
        member = self.start()
        made = {member.new_id() for _ in range(1_000)}
        self.assertEqual(len(made), 1_000)
        self.assertTrue(all(0 < each < 1 << 63 for each in made))

    def test_watchers_are_told_in_the_turn_of_the_write(self) -> None:
        """What is applied together is told together, and the past comes from the database."""
        member = self.start()
        told: list[int] = []
        observation = member.hub.observe(b"k", b"", 0, lambda revision, _: told.append(revision))
        self.station.put(b"k")
        self.station.put(b"other")
        self.station.put(b"k")
        self.clock.advance(0)
        self.assertEqual(told, [2, 4])
        observation.cancel()
        self.station.put(b"k")
        self.clock.advance(0)
        member.hub.observe(b"k", b"", 2, lambda revision, _: told.append(revision))
        self.clock.pump([0.0] * 5)
        self.assertEqual(told, [2, 4, 2, 4, 5])
        self.stop(member)
        self.assertEqual([call for call in self.clock.getDelayedCalls() if call.active()], [])


class SeamTests(MemberCase):
    """What the services, and whatever else stands around a member, are given."""

    def read_all(self, member: Member) -> Deferred[Any]:
        return member.read_backend(lambda backend: len(backend.scan(0, 1 << 62, 100)))

    def test_facts(self) -> None:
        """What a member says of itself."""
        member = self.start()
        self.station.put(b"k")
        self.clock.advance(0)
        self.assertEqual((member.leader, member.committed, member.applied, member.applied_term), (ME, 3, 3, 2))
        self.assertEqual(
            (member.is_learner, member.stopped, member.installing, member.pending), (False, False, False, 0)
        )
        self.assertEqual(list(member.progress), [ME])
        self.assertGreater(member.wal_bytes_written, 0)
        self.assertEqual(member.size, Size(0, 0))
        self.assertEqual(member.version_json, b'{"etcdserver":"3.5.1","etcdcluster":"not_decided"}')
        member.applier.cluster_version = "3.5.0"
        self.assertEqual(member.version_json, b'{"etcdserver":"3.5.1","etcdcluster":"3.5.0"}')

    def test_too_much_to_apply(self) -> None:
        """While the state is far behind the log, requests are refused with etcd's error."""
        self.patch(server, "_MOST_UNAPPLIED_ENTRIES", 3)
        self.patch(statekeeper, "BACKLOG_ROWS", 0)
        member = self.start()
        worker = self.station.slow_database()
        waiting = [self.station.put(b"k") for _ in range(2)]
        self.clock.advance(0)
        waiting += [self.station.put(b"k") for _ in range(4)]
        self.clock.advance(0)
        self.assertIsInstance(self.station.put(b"k").error, TooManyRequestsError)
        worker.release()
        self.assertEqual(waiting[-1].revision, 7)
        after = self.station.put(b"k")
        self.clock.advance(0)
        self.assertEqual((after.revision, member.revision), (8, 8))

    def test_compacting(self) -> None:
        """A compaction that the member asks for itself is answered as any other."""
        member = self.start()
        self.station.put(b"k")
        compacted = member.compact(2)
        self.clock.advance(0)
        self.successResultOf(compacted)
        self.assertEqual(member.store.compacted, 2)
        refused = member.compact(9)
        self.clock.advance(0)
        self.failureResultOf(refused, KVError)

    def test_compacting_by_itself(self) -> None:
        """Automatic compaction begins and ends with the member."""
        self.station.options = {"auto-compaction-mode": "revision", "auto-compaction-retention": "2"}
        member = self.start()
        for _ in range(5):
            self.station.put(b"k")
        self.clock.advance(0)
        self.clock.pump([1.0] * 301)
        self.assertEqual(member.store.compacted, 4)
        self.stop(member)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_reading_the_database(self) -> None:
        """Whoever reads the database finds everything in it that was applied before."""
        member = self.start()
        self.station.put(b"k")
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(self.read_all(member)), 1)
        self.assertEqual(len(self.successResultOf(member.on_storage_thread(lambda backend: backend.rows([])))), 0)
        self.assertEqual(self.successResultOf(member.fetch(())), Loan({}, {}))

    def test_watchers_wait_for_a_database_that_fails(self) -> None:
        """A database that cannot be read delays watchers of the past, and stops nothing."""
        backend = self.station.backend = UnreadableMemory()
        member = self.start()
        for _ in range(3):
            self.station.put(b"k")
        self.clock.advance(0)
        told: list[int] = []
        backend.error = BackendError("the disk is gone")
        member.hub._history.clear(member.revision + 1)  # what is in memory would do
        member.hub.observe(b"k", b"", 2, lambda revision, _: told.append(revision))
        self.clock.pump([0.1] * 20)
        self.assertEqual((told, self.failures), ([], []))
        backend.error = None
        self.clock.pump([0.1] * 20)
        self.assertEqual(told, [2, 3, 4])

    def test_watchers_and_a_mistake_of_ours(self) -> None:
        """What must not happen while the past is read stops the member."""
        backend = self.station.backend = UnreadableMemory()
        member = self.start()
        self.station.put(b"k")
        self.clock.advance(0)
        backend.error = RuntimeError("a mistake")
        member.hub._history.clear(member.revision + 1)
        member.hub.observe(b"k", b"", 2, lambda *_: None)
        self.clock.pump([0.1] * 5)
        self.assertEqual([type(each) for each in self.failures], [RuntimeError])
        self.flushLoggedErrors(RuntimeError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_whoever_waits_for_an_index(self) -> None:
        """``when_applied`` calls at once if the state has the index, and otherwise as soon as it has."""
        member = self.start()
        told: list[str] = []
        member.when_applied(member.applied, lambda: told.append("has it"))
        member.when_applied(member.applied + 1, lambda: told.append("gets it"))
        self.assertEqual(told, ["has it"])
        self.station.put(b"k")
        self.clock.advance(0)
        self.assertEqual(told, ["has it", "gets it"])

    def test_whoever_waits_for_a_leader(self) -> None:
        """Whoever takes back that it waits for a leader is not called, also if that happens in the same change."""
        member = self.station.open(self.clock, NoPeers)
        told: list[str] = []

        def first() -> None:
            told.append("first")
            cancel()

        member.when_leader(first)
        cancel = member.when_leader(lambda: told.append("second"))
        member.start()
        self.clock.advance(0)
        self.assertEqual(told, ["first"])
        cancel()
        self.assertEqual(member.leader_changes, [])

    def test_later(self) -> None:
        """What is to happen later happens once, and not after the end."""
        member = self.start()
        told: list[str] = []
        member.later(1.0, told.append, "one")
        member.later(2.0, told.append, "two")
        self.clock.advance(1.0)
        self.clock.advance(0.5)
        self.stop(member)
        self.clock.advance(1.0)
        self.assertEqual(told, ["one"])

    def test_a_slow_batch_is_counted(self) -> None:
        """A batch that takes long to apply is counted, as etcd counts slow applies."""
        member, clock = self.start(), self.clock

        class Slow(Answer):
            def reply(self, message: bytes) -> None:
                super().reply(message)
                clock.advance(0.2)

        answer = Slow()
        member.propose(InternalRaftRequest(put=PutRequest(key=b"k")).SerializeToString(), answer)
        self.clock.advance(0)
        self.assertTrue(answer.done)
        self.assertEqual(member.metrics.slow_applies, 1)

    def test_after_the_end(self) -> None:
        """A member that has stopped refuses everything, and stopping it again does nothing."""
        member = self.start()
        self.stop(member)
        self.stop(member)
        member.leave()
        self.assertEqual(self.failures, [])
        self.failureResultOf(member.reconfigure(ConfChange(type=ConfChangeRemoveNode, node_id=ME)), StoppedError)
        self.assertIsInstance(self.station.read().error, StoppedError)
        self.assertIsNone(member._snapshot_to_come())
        self.assertFalse(member.may_read)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_whoever_asks_again_when_it_ends(self) -> None:
        """A client that asks again from within the answer that the member stops is refused, and nothing is left."""
        member = self.start()
        again = Answer()

        class Again(Answer):
            def fail(self, error: BaseException) -> None:
                super().fail(error)
                member.propose(InternalRaftRequest(put=PutRequest(key=b"k")).SerializeToString(), again)
                member.when_readable(lambda: None, lambda error: None)
                member.reconfigure(ConfChange(type=ConfChangeRemoveNode, node_id=ME)).addErrback(lambda _: None)

        member.propose(InternalRaftRequest(put=PutRequest(key=b"k")).SerializeToString(), Again())
        self.stop(member)
        self.assertIsInstance(again.error, StoppedError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_full_disk_with_nobody_to_hand_over_to(self) -> None:
        """A leader whose disk is full, and who reaches nobody else, leads on and waits for room."""
        member = self.start()
        self.disk.full = True
        waiting = self.station.put(b"k")
        self.clock.pump([0.1] * 20)
        self.assertTrue(member.is_leader)
        self.disk.full = False
        self.clock.pump([0.1] * 6)
        self.assertEqual(waiting.revision, 2)
