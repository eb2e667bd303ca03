"""The Maintenance service, without a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from tests.calls import RecordedCall
from tests.protocols.services.test_snapshot import SnapshotMember
from twistedkv.apply import Alarms, Applier
from twistedkv.errors import (
    BadLeaderTransfereeError,
    Code,
    KVError,
    NoDowngradeError,
    NoLeaderError,
    NotLeaderError,
)
from twistedkv.lease import Lessor
from twistedkv.members import MemberInfo, Membership
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.rpc_pb2 import (
    CORRUPT,
    AlarmRequest,
    AlarmResponse,
    DowngradeRequest,
    DowngradeResponse,
    MoveLeaderRequest,
    StatusResponse,
)
from twistedkv.protocols.services.maintenance import MaintenanceService
from twistedkv.storage.backend import BackendError
from twistedkv.wire import HeaderEncoder

ME, LEARNER, OTHER = 0xA, 0xB, 0xC


class MaintenanceMember(SnapshotMember):
    """What the service asks of a member; proposals are applied at once."""

    term, committed = 2, 9
    header = HeaderEncoder(0xC, ME)
    member_id = ME
    leader = ME
    stopped = False
    timeout_s = 7.0

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.leader_changes: list[Callable[[], None]] = []
        self.transfers: list[int] = []
        members = [
            MemberInfo(ME, ("http://192.0.2.1:2380",)),
            MemberInfo(LEARNER, ("http://192.0.2.2:2380",), is_learner=True),
            MemberInfo(OTHER, ("http://192.0.2.3:2380",)),
        ]
        membership = Membership({member.id: member for member in members})
        self.applier = Applier(self.store, Lessor(2), Alarms(), membership, "3.5.0")

    @property
    def alarms(self) -> Alarms:
        return self.applier.alarms

    @property
    def membership(self) -> Membership:
        return self.applier.membership

    @property
    def is_leader(self) -> bool:
        return self.leader == ME

    @property
    def is_learner(self) -> bool:
        return self.membership.members[ME].is_learner

    def transfer_leader(self, target: int) -> None:
        self.transfers.append(target)

    def lead_by(self, leader: int) -> None:
        self.leader = leader
        for tell in list(self.leader_changes):
            tell()

    def when_readable(self, ready: Callable[[], None], refuse: Callable[[KVError], None]) -> None:
        if self.leader:
            ready()
        else:
            refuse(NoLeaderError())

    def propose_request(self, request: InternalRaftRequest) -> Deferred[bytes]:
        try:
            done = self.applier.apply(request)
        except KVError as error:
            return fail(error)
        return succeed(self.header.field(done.revision, self.term) + done.body)


class MaintenanceCase(SynchronousTestCase):
    """A member and its service."""

    def setUp(self) -> None:
        self.member = MaintenanceMember(Path(self.mktemp()))
        service = MaintenanceService(self.member, "3.5.1")  # type: ignore[arg-type]
        self.methods = {method.path.rpartition("/")[2]: method for method in service.methods()}

    def call(self, name: str, request: Any = None) -> RecordedCall:
        """A call, carried out as far as that goes at once."""
        return RecordedCall(self.methods[name], b"" if request is None else request.SerializeToString()).run()


class DefragmentTests(MaintenanceCase):
    """Defragment."""

    def setUp(self) -> None:
        super().setUp()
        self.left = 3  # calls until the database says that it is done
        self.patch(self.member.backend, "defragment", self.defragment)

    def defragment(self) -> bool:
        self.left -= 1
        return not self.left

    def inflight(self) -> int:
        return self.member.metrics.defragmenting

    def test_others_come_in_between(self) -> None:
        """The database is asked again and again, each time behind what was written meanwhile."""
        call = self.call("Defragment")
        done: list[int] = []
        for number in range(2):
            self.assertEqual(self.inflight(), 1)
            self.member.store.begin()
            self.member.store.put(b"key", b"%d" % number, 0)
            self.member.store.end()
            written = self.member.write_behind.flush()
            written.addCallback(lambda _: done.append(self.left))
            while len(done) == number:
                self.member.worker.step()
        self.member.worker.drain()
        self.assertEqual((call.sent, self.inflight()), ([b""], 0))
        self.assertIn(b"etcd_disk_backend_defrag_duration_seconds_count 1\n", self.member.metrics.exposition())
        self.assertEqual(done, [2, 1])  # one call of the database before each write

    def test_a_client_that_leaves(self) -> None:
        """Nobody waits for it any more, so it stops."""
        call = self.call("Defragment")
        self.member.worker.step()
        call.done = True
        self.member.worker.drain()
        self.assertEqual((self.left, self.inflight()), (2, 0))

    def test_a_database_that_refuses(self) -> None:
        """Its words are the answer."""

        def refuse() -> bool:
            raise BackendError("no room for it")

        self.patch(self.member.backend, "defragment", refuse)
        call = self.call("Defragment")
        self.member.worker.drain()
        self.assertIsInstance(call.error, BackendError)
        self.assertEqual(self.inflight(), 0)


class LeadershipTests(MaintenanceCase):
    """MoveLeader."""

    def tearDown(self) -> None:
        self.assertEqual((self.member.clock.getDelayedCalls(), self.member.leader_changes), ([], []))

    def test_another_one_leads(self) -> None:
        """The answer comes once it does, and has no header."""
        call = self.call("MoveLeader", MoveLeaderRequest(targetID=OTHER))
        self.assertEqual(self.member.transfers, [OTHER])
        self.member.lead_by(0)
        self.assertFalse(call.done)
        self.member.lead_by(OTHER)
        self.assertEqual(call.sent, [b""])

    def test_it_takes_too_long(self) -> None:
        """Who asked is told after the time of a request, in etcd's words, which have no code of their own."""
        call = self.call("MoveLeader", MoveLeaderRequest(targetID=OTHER))
        self.member.clock.advance(7)
        assert isinstance(call.error, KVError)
        text = "etcdserver: request timed out, leader transfer took too long"
        self.assertEqual((call.error.code, str(call.error)), (Code.UNKNOWN, text))

    def test_a_client_that_leaves(self) -> None:
        """Nobody waits any more."""
        call = self.call("MoveLeader", MoveLeaderRequest(targetID=OTHER))
        call.done = True
        assert call.on_cancel is not None
        call.on_cancel()

    def test_who_can_lead(self) -> None:
        """Only the leader moves leadership, and to nobody but a voter that there is."""
        self.assertEqual(self.call("MoveLeader", MoveLeaderRequest(targetID=ME)).sent, [b""])
        for target in (0, LEARNER, 0xFF):
            call = self.call("MoveLeader", MoveLeaderRequest(targetID=target))
            self.assertIsInstance(call.error, BadLeaderTransfereeError)
        self.member.leader = 0xFF
        self.assertIsInstance(self.call("MoveLeader", MoveLeaderRequest(targetID=ME)).error, NotLeaderError)


class DowngradeTests(MaintenanceCase):
    """Downgrade."""

    def ask(self, action: Any, version: str = "") -> RecordedCall:
        """One request."""
        return self.call("Downgrade", DowngradeRequest(action=action, version=version))

    def test_it_is_recorded(self) -> None:
        """Asking changes nothing; enabling and cancelling go through the log."""
        asked = self.ask(DowngradeRequest.VALIDATE, "3.4")
        self.assertEqual(DowngradeResponse.FromString(asked.sent[0]).version, "3.5.0")
        self.assertFalse(self.member.applier.downgrade.enabled)
        self.assertIsInstance(self.ask(DowngradeRequest.CANCEL).error, NoDowngradeError)
        self.assertIsNone(self.ask(DowngradeRequest.ENABLE, "3.4").error)
        self.assertEqual(self.member.applier.downgrade, ("3.4.0", True))
        self.assertIsNone(self.ask(DowngradeRequest.CANCEL).error)
        self.assertEqual(self.member.applier.downgrade, ("", False))

    def test_without_a_leader(self) -> None:
        """What the cluster does cannot be said."""
        self.member.leader = 0
        self.assertIsInstance(self.ask(DowngradeRequest.VALIDATE, "3.4").error, NoLeaderError)


class StatusTests(MaintenanceCase):
    """Status."""

    def test_a_learner_says_so(self) -> None:
        """Whether it has a vote is in the answer."""
        for member, learner in ((MemberInfo(ME, ("http://x:1",)), False), (MemberInfo(ME, (), "", (), True), True)):
            self.member.membership.members[ME] = member
            call = self.call("Status")
            self.member.worker.drain()
            self.assertEqual(StatusResponse.FromString(call.sent[0]).isLearner, learner)


class AlarmTests(MaintenanceCase):
    """Alarm, and what Status says of it."""

    def test_raised_listed_and_taken_back(self) -> None:
        """Each member's alarm is one of its own; the status names them all."""
        for member in (ME, 7):
            self.call("Alarm", AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=member, alarm=CORRUPT))
        listed = AlarmResponse.FromString(self.call("Alarm", AlarmRequest()).sent[0]).alarms
        self.assertEqual([each.memberID for each in listed], [7, ME])
        status = self.call("Status")
        self.member.worker.drain()
        errors = StatusResponse.FromString(status.sent[0]).errors
        self.assertEqual(list(errors), ["memberID:7 alarm:CORRUPT ", "memberID:10 alarm:CORRUPT "])
        self.call("Alarm", AlarmRequest(action=AlarmRequest.DEACTIVATE, memberID=7, alarm=CORRUPT))
        listed = AlarmResponse.FromString(self.call("Alarm", AlarmRequest()).sent[0]).alarms
        self.assertEqual([each.memberID for each in listed], [ME])

    def test_what_is_no_alarm(self) -> None:
        """Kinds and actions that nobody knows are refused, where etcd 3.5.1 crashes, and change nothing."""
        for request in (AlarmRequest(action=1, alarm=9, memberID=ME), AlarmRequest(action=5, alarm=1)):  # type: ignore[arg-type]
            error = self.call("Alarm", request).error
            assert isinstance(error, KVError)
            self.assertIn("unknown alarm", str(error))
        self.assertFalse(self.member.alarms)
