"""What a learner, and a member without a leader, refuses; by itself, and over gRPC and JSON."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable

from google.protobuf.message import DecodeError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.calls import RecordedCall
from tests.protocols.grpcpeers import LATER, WATCH, H2Client, ToyService
from tests.protocols.httpfakes import Wire, parse, request
from twistedkv.errors import KVError, NoLeaderError, NotForLearnerError
from twistedkv.pb.rpc_pb2 import RangeRequest, RangeResponse
from twistedkv.protocols.gate import Gate
from twistedkv.protocols.rpc import Access, Call, Head, Kind, Method, MethodTable

ELECTION_S = 1.0
REQUIRE = {"hasleader": "true"}
NO_LEADER = "etcdserver: no leader"

METHODS = {
    "/etcdserverpb.KV/Range": Kind.UNARY,
    "/etcdserverpb.KV/Put": Kind.UNARY,
    "/etcdserverpb.Cluster/MemberList": Kind.UNARY,
    "/etcdserverpb.Maintenance/Status": Kind.UNARY,
    "/etcdserverpb.Maintenance/Snapshot": Kind.SERVER_STREAM,
    "/etcdserverpb.Watch/Watch": Kind.BIDI,
    "/etcdserverpb.Lease/LeaseKeepAlive": Kind.BIDI,
    "/v3electionpb.Election/Observe": Kind.SERVER_STREAM,
}
SERIALIZABLE = RangeRequest(key=b"k", serializable=True).SerializeToString()
LINEARIZABLE = RangeRequest(key=b"k").SerializeToString()


class Member:
    """What it is, is the test's to say."""

    def __init__(self) -> None:
        self.leader = 5
        self.is_learner = False
        self.leader_changes: list[Callable[[], None]] = []

    def lead_by(self, leader: int) -> None:
        """Another member leads, or nobody for 0."""
        self.leader = leader
        for tell in list(self.leader_changes):
            tell()


class GateCase(SynchronousTestCase):
    """Methods that keep their calls, behind a gate."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.member = Member()
        self.handled: list[Call] = []
        self.cancelled: list[Call] = []
        self.failures: list[tuple[BaseException, str]] = []
        self.table = self.methods()
        self.gate = self.before(self.table)

    def methods(self) -> MethodTable:
        """All of them, without a gate."""
        return MethodTable(
            Method(path, kind, RangeRequest, RangeResponse, Access.OPEN, self.handle) for path, kind in METHODS.items()
        )

    def before(self, table: MethodTable) -> Gate:
        """A gate that stands before these methods."""
        gate = Gate(
            table,
            self.member,
            self.clock.callLater,
            ELECTION_S,
            lambda error, path: self.failures.append((error, path)),
        )
        gate.start()
        return gate

    def handle(self, call: Call) -> None:
        self.handled.append(call)
        call.on_cancel = lambda: self.cancelled.append(call)

    def call(self, name: str, message: bytes = b"", metadata: dict[str, str] | None = None) -> RecordedCall:
        """A call as a transport makes it."""
        path = next(path for path in METHODS if path.endswith(f"/{name}"))
        method = self.table.find(Head(path, metadata or {}, None))
        assert method is not None
        return RecordedCall(method, message, metadata).run()

    def outcome(self, name: str, message: bytes = b"", metadata: dict[str, str] | None = None) -> type[KVError] | None:
        """None if the call came through, else what it was refused by."""
        before = len(self.handled)
        error = self.call(name, message, metadata).error
        self.assertEqual(len(self.handled) - before, error is None)
        assert error is None or isinstance(error, KVError)
        return None if error is None else type(error)


class LearnerTests(GateCase):
    """A learner has what the others have, but later, and no part in what they decide."""

    def test_what_it_answers(self) -> None:
        """Its status, its data as they are, and a copy of them; etcd semantics §10."""
        self.member.is_learner = True
        self.gate.look()
        answered = {("Range", SERIALIZABLE), ("Status", b""), ("Snapshot", b"")}
        for path in METHODS:
            name = path.rpartition("/")[2]
            for message in (b"", SERIALIZABLE, LINEARIZABLE) if name == "Range" else (b"",):
                expected = None if (name, message) in answered else NotForLearnerError
                self.assertEqual(self.outcome(name, message), expected, name)
                self.assertEqual(self.outcome(name, message, REQUIRE), expected, name)

    def test_what_cannot_be_read(self) -> None:
        """It is refused as the service would refuse it."""
        self.member.is_learner = True
        self.gate.look()
        with self.assertRaises(DecodeError):
            self.call("Range", b"\xff")

    def test_a_voter_has_nothing_in_the_way(self) -> None:
        """Calls go straight to the services, so the gate costs nothing."""
        for method in self.table.by_path.values():
            self.assertEqual(method.handler, self.handle)

    def test_promotion(self) -> None:
        """From the first call after it everything is answered, and nothing is in the way any more."""
        self.member.is_learner = True
        self.gate.look()
        self.assertEqual(self.outcome("Put"), NotForLearnerError)
        self.member.is_learner = False
        self.assertIsNone(self.outcome("Put"))
        self.test_a_voter_has_nothing_in_the_way()

    def test_a_member_that_starts_as_a_learner(self) -> None:
        """It is one before the first call."""
        self.member.is_learner = True
        self.table = self.methods()
        self.before(self.table)
        self.assertEqual(self.outcome("Put"), NotForLearnerError)


class LeaderTests(GateCase):
    """Callers who want a member that has a leader say so in their metadata."""

    def tearDown(self) -> None:
        self.gate.stop()
        self.gate.stop()  # a second time is no error
        self.assertEqual((self.clock.getDelayedCalls(), self.member.leader_changes), ([], []))

    def test_they_are_refused_at_once(self) -> None:
        """Whatever the method; others, and those who ask by another word, are not."""
        for leader, refusal in ((5, None), (0, NoLeaderError)):
            self.member.lead_by(leader)
            for path in METHODS:
                name = path.rpartition("/")[2]
                self.assertEqual(self.outcome(name, b"", REQUIRE), refusal, name)
                for metadata in ({}, {"hasleader": "TRUE"}, {"hasleader": ""}, {"requireleader": "true"}):
                    self.assertIsNone(self.outcome(name, b"", metadata), name)

    def test_a_learner_without_a_leader(self) -> None:
        """That it is a learner comes first."""
        self.member.is_learner = True
        self.member.lead_by(0)
        self.assertEqual(self.outcome("Put", b"", REQUIRE), NotForLearnerError)
        self.assertEqual(self.outcome("Range", LINEARIZABLE, REQUIRE), NotForLearnerError)
        self.assertEqual(self.outcome("Range", SERIALIZABLE, REQUIRE), NoLeaderError)
        self.assertEqual(self.outcome("Status", b"", REQUIRE), NoLeaderError)

    def test_their_streams_end_after_a_while(self) -> None:
        """Three election timeouts without a leader end every such stream, and nothing else."""
        watch, observe = self.call("Watch", b"", REQUIRE), self.call("Observe", b"", REQUIRE)
        unary, plain = self.call("Put", b"", REQUIRE), self.call("Watch")
        over = self.call("Watch", b"", REQUIRE)
        over.finish()
        self.member.lead_by(0)
        self.clock.advance(2.9 * ELECTION_S)
        self.member.lead_by(0)  # it stood for election, in vain
        self.assertFalse(watch.done)
        self.clock.advance(0.2 * ELECTION_S)
        for stream in (watch, observe):
            self.assertIsInstance(stream.error, NoLeaderError)
        self.assertCountEqual(self.cancelled, [watch, observe])
        self.assertEqual((unary.done, plain.done, over.error), (False, False, None))

    def test_a_leader_in_time(self) -> None:
        """The time begins anew with each loss of the leader."""
        watch = self.call("Watch", b"", REQUIRE)
        for _ in range(3):
            self.member.lead_by(0)
            self.clock.advance(2.9 * ELECTION_S)
            self.member.lead_by(7)
        self.assertFalse(watch.done)
        self.member.lead_by(0)
        self.clock.advance(3 * ELECTION_S)
        self.assertTrue(watch.done)
        self.member.lead_by(7)
        again = self.call("Watch", b"", REQUIRE)
        self.clock.advance(10 * ELECTION_S)
        self.assertFalse(again.done)

    def test_a_stream_that_breaks_at_its_end(self) -> None:
        """What its handler raises is logged, and the others end all the same."""
        watches = [self.call("Watch", b"", REQUIRE) for _ in range(3)]

        def broken() -> None:
            raise LookupError("broken")

        watches[1].on_cancel = broken
        self.member.lead_by(0)
        self.clock.advance(3 * ELECTION_S)
        self.assertTrue(all(watch.done for watch in watches))
        ((error, path),) = self.failures
        self.assertIsInstance(error, LookupError)
        self.assertEqual(path, "/etcdserverpb.Watch/Watch")

    def test_streams_that_are_gone_are_forgotten(self) -> None:
        """The gate keeps no call alive."""
        self.call("Watch", b"", REQUIRE)
        self.handled.clear()
        gc.collect()  # a call and its own callback refer to each other
        self.member.lead_by(0)
        self.clock.advance(3 * ELECTION_S)
        self.assertEqual(self.cancelled, [])


class TransportTests(GateCase):
    """The same over both transports."""

    def test_grpc(self) -> None:
        """The header of a request is what says it."""
        original = ToyService.table

        def table(service: ToyService) -> MethodTable:
            methods = original(service)
            self.before(methods)
            return methods

        self.patch(ToyService, "table", table)
        client = H2Client()
        open_stream = client.open(WATCH, hasleader="true")
        plain_stream = client.open(WATCH)
        waiting = client.send(LATER, b"", hasleader="true")
        client.pump()
        self.member.lead_by(0)
        refused = client.request(LATER, b"", hasleader="true")
        self.assertEqual(refused.status, (14, NO_LEADER))
        self.assertEqual(client.request(WATCH, hasleader="true").status, (14, NO_LEADER))
        for timeout in ("3S", "4S"):  # differing in this alone, they share what was parsed
            self.assertEqual(client.request(LATER, b"", hasleader="true", grpc_timeout=timeout).status, (14, NO_LEADER))
        self.clock.advance(3 * ELECTION_S)
        client.pump()
        self.assertEqual(client.answers[open_stream].status, (14, NO_LEADER))
        self.assertEqual(len(client.service.cancelled), 1)
        for left in (plain_stream, waiting):
            self.assertNotIn(left, client.answers)
        self.member.lead_by(5)
        again = client.open(WATCH, hasleader="true")
        client.pump()
        self.assertNotIn(again, client.answers)

    def test_json(self) -> None:
        """The gateway passes the header on, and both answers are its own kind of error."""
        wire = Wire()
        self.before(wire.member.methods)
        header = "Grpc-Metadata-HasLeader: true"
        status, _, _ = parse(wire.send(request("/v3/kv/put", b'{"key":"YQ=="}', "POST", header)))
        self.assertEqual(status, 200)
        self.assertEqual(wire.send(request("/v3/watch", b"{}", "POST", header)), b"")
        self.member.lead_by(0)
        self.clock.advance(3 * ELECTION_S)
        status, _, body = parse(wire.taken())
        self.assertEqual((status, json.loads(body)["error"]["message"]), (503, NO_LEADER))
        self.assertEqual(len(wire.member.cancelled), 1)
        status, _, body = parse(wire.send(request("/v3/kv/put", b'{"key":"YQ=="}', "POST", header)))
        self.assertEqual((status, json.loads(body)["code"], json.loads(body)["message"]), (503, 14, NO_LEADER))
        self.assertEqual(parse(wire.send(request("/v3/kv/put", b'{"key":"YQ=="}')))[0], 200)

    def test_json_of_a_learner(self) -> None:
        """What it does not answer over gRPC it does not answer here."""
        wire = Wire()
        self.member.is_learner = True
        self.before(wire.member.methods)
        status, _, body = parse(wire.send(request("/v3/kv/put", b'{"key":"YQ=="}')))
        self.assertEqual((status, json.loads(body)["message"]), (503, "etcdserver: rpc not supported for learner"))
