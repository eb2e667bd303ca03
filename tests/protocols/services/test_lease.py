"""The Lease service over a member in memory."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.calls import RecordedCall
from tests.localmember import LocalMember
from twistedkv.errors import (
    LeaseExistsError,
    LeaseNotFoundError,
    LeaseTTLTooLargeError,
    NoLeaderError,
    NoSpaceError,
    RequestTimeoutError,
)
from twistedkv.leaseprimary import PrimaryLessor
from twistedkv.leasesite import LeaseSite
from twistedkv.pb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseLeasesResponse,
    LeaseRevokeRequest,
    LeaseRevokeResponse,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
    PutRequest,
)
from twistedkv.peersite import PeerRequest
from twistedkv.protocols.answers import Answer

LEADER = 0xB


class LeaseServiceTestCase(SynchronousTestCase):
    """A member and short words for its methods."""

    def setUp(self) -> None:
        self.member = LocalMember()
        self.addCleanup(self.member.stop)

    def grant(self, lease_id: int, ttl_s: int = 60) -> LeaseGrantResponse:
        call = self.member.call("LeaseGrant", LeaseGrantRequest(ID=lease_id, TTL=ttl_s))
        self.assertIsNone(call.error)
        return LeaseGrantResponse.FromString(call.sent[0])

    def time_to_live(self, lease_id: int, keys: bool = False) -> LeaseTimeToLiveResponse:
        call = self.member.call("LeaseTimeToLive", LeaseTimeToLiveRequest(ID=lease_id, keys=keys))
        return LeaseTimeToLiveResponse.FromString(call.sent[0])


class LeaseServiceTests(LeaseServiceTestCase):
    """Unary methods. etcd semantics §7."""

    def test_a_lease_without_an_id_gets_one(self) -> None:
        """Id 0 asks the server to choose, a positive one; the log has it, so that all members agree."""
        first, second = self.grant(0), self.grant(0)
        self.assertGreater(first.ID, 0)
        self.assertNotEqual(first.ID, second.ID)
        self.assertEqual((first.TTL, first.header.revision, first.header.member_id), (60, 1, 0xA))
        self.assertIn(first.ID, self.member.lessor)

    def test_bad_grants_get_etcds_answer(self) -> None:
        """A taken id, a TTL beyond the maximum and a full database are refused, short TTLs are raised."""
        self.grant(7)
        for lease_id, ttl_s, expected in (
            (7, 60, LeaseExistsError),
            (8, 9_000_000_001, LeaseTTLTooLargeError),
        ):
            call = self.member.call("LeaseGrant", LeaseGrantRequest(ID=lease_id, TTL=ttl_s))
            self.assertIsInstance(call.error, expected)
        self.assertEqual([self.grant(each, ttl_s).TTL for each, ttl_s in ((9, 0), (10, -3))], [2, 2])
        self.member.full = True
        self.assertIsInstance(self.member.call("LeaseGrant", LeaseGrantRequest(TTL=60)).error, NoSpaceError)

    def test_revoking_twice_is_an_error(self) -> None:
        """A lease is revoked once, with its keys; the header has the revision of their deletion."""
        self.grant(7)
        self.member.call("Put", PutRequest(key=b"a", lease=7))
        revoked = self.member.call("LeaseRevoke", LeaseRevokeRequest(ID=7))
        self.assertEqual(LeaseRevokeResponse.FromString(revoked.sent[0]).header.revision, 3)
        self.assertIsInstance(self.member.call("LeaseRevoke", LeaseRevokeRequest(ID=7)).error, LeaseNotFoundError)
        self.assertIsInstance(self.member.call("LeaseRevoke", LeaseRevokeRequest()).error, LeaseNotFoundError)

    def test_time_to_live(self) -> None:
        """What remains is rounded down; keys are listed when asked for; an unknown lease has -1 and no error."""
        self.grant(7, 10)
        self.member.call("Put", PutRequest(key=b"a", lease=7))
        self.member.clock.advance(0.5)
        answer = self.time_to_live(7)
        self.assertEqual((answer.ID, answer.TTL, answer.grantedTTL, list(answer.keys)), (7, 9, 10, []))
        self.assertEqual(list(self.time_to_live(7, keys=True).keys), [b"a"])
        gone = self.time_to_live(99)
        self.assertEqual((gone.ID, gone.TTL, gone.grantedTTL, gone.header.revision), (99, -1, 0, 2))

    def test_leases_are_listed_by_what_remains(self) -> None:
        """The lease that ends first comes first."""
        for lease_id, ttl_s in ((1, 30), (2, 10), (3, 20)):
            self.grant(lease_id, ttl_s)
        answer = LeaseLeasesResponse.FromString(self.member.call("LeaseLeases").sent[0])
        self.assertEqual([each.ID for each in answer.leases], [2, 3, 1])

    def test_a_member_that_does_not_lead_asks_later(self) -> None:
        """Time is the leader's: while nobody leads the question waits."""
        self.grant(7, 10)
        self.member.leases.follow()
        self.member.may_read = False
        call = self.member.call("LeaseTimeToLive", LeaseTimeToLiveRequest(ID=7))
        self.assertFalse(call.done)
        self.member.leases.lead()
        for ready in self.member.readers:
            ready()
        self.assertEqual(LeaseTimeToLiveResponse.FromString(call.sent[0]).TTL, 11)


class KeepAliveTests(LeaseServiceTestCase):
    """The stream of renewals."""

    def open(self) -> RecordedCall:
        call = self.member.call("LeaseKeepAlive")
        self.pauses: list[str] = []
        return call

    def ask(self, call: RecordedCall, *lease_ids: int) -> None:
        for lease_id in lease_ids:
            assert call.on_message is not None
            call.on_message(LeaseKeepAliveRequest(ID=lease_id).SerializeToString())

    def answers(self, call: RecordedCall) -> list[tuple[int, int]]:
        responses = [LeaseKeepAliveResponse.FromString(each) for each in call.sent]
        return [(each.ID, each.TTL) for each in responses]

    def test_each_request_is_answered(self) -> None:
        """Renewals give the whole TTL; an unknown lease gets TTL 0 and the stream goes on."""
        self.grant(7, 10)
        call = self.open()
        self.ask(call, 7, 99, 0, 7)
        self.assertEqual(self.answers(call), [(7, 10), (99, 0), (0, 0), (7, 10)])
        self.assertFalse(call.done)
        assert call.on_half_close is not None
        call.on_half_close()
        self.assertTrue(call.done)
        self.assertIsNone(call.error)

    def test_a_kept_lease_lives(self) -> None:
        """A key on a lease is there as long as the lease is kept alive, and gone within a second of its end."""
        self.grant(7, 5)
        self.member.call("Put", PutRequest(key=b"service", lease=7))
        call = self.open()
        for _ in range(5):
            self.member.clock.pump([0.5] * 8)
            self.ask(call, 7)
        self.member.clock.pump([0.1] * 49)
        self.assertIn(b"service", self.member.store.index.entries)
        self.member.clock.pump([0.1] * 7)
        self.assertNotIn(b"service", self.member.store.index.entries)
        self.assertEqual(self.time_to_live(7).TTL, -1)

    def test_an_ended_lease_waits_for_its_revocation(self) -> None:
        """A renewal that comes too late gets TTL 0 once the lease is gone; those behind it wait for their turn."""
        self.grant(7, 5)
        self.grant(8, 60)
        self.member.holding = True
        self.member.clock.advance(5)
        call = self.open()
        self.ask(call, 7, 8, 7)
        self.assertEqual(self.answers(call), [])
        assert call.on_half_close is not None
        call.on_half_close()
        self.assertFalse(call.done)
        self.member.clock.advance(0.5)
        self.member.commit()
        self.assertEqual(self.answers(call), [(7, 0), (8, 60), (7, 0)])
        self.assertTrue(call.done)

    def test_a_client_that_leaves_is_not_answered(self) -> None:
        """The revocation that a stream waited for finds the stream gone."""
        self.grant(7, 5)
        self.member.holding = True
        self.member.clock.advance(5)
        call = self.open()
        self.ask(call, 7)
        call.done = True
        self.member.clock.advance(0.5)
        self.member.commit()
        self.assertEqual(call.sent, [])

    def test_the_header_is_from_before_the_renewal(self) -> None:
        """Who waited gets the revision of when it asked, not that of the revocation."""
        self.grant(7, 5)
        self.member.call("Put", PutRequest(key=b"a", lease=7))
        self.member.holding = True
        self.member.clock.advance(5)
        call = self.open()
        self.ask(call, 7)
        self.member.clock.advance(0.5)
        self.member.commit()
        self.assertEqual(self.member.store.revision, 3)
        self.assertEqual(LeaseKeepAliveResponse.FromString(call.sent[0]).header.revision, 2)

    def test_a_change_of_leader_asks_again(self) -> None:
        """A renewal that waits when the leader steps down is carried out by the next one."""
        self.grant(7, 5)
        self.member.holding = True
        self.member.clock.advance(5)
        call = self.open()
        self.ask(call, 7)
        self.member.may_read = False
        self.member.leases.follow()
        self.assertEqual(self.answers(call), [])
        self.member.leases.lead()
        for ready in self.member.readers:
            ready()
        self.assertEqual(self.answers(call), [(7, 5)])


class FollowerTests(SynchronousTestCase):
    """The clients of a member that does not lead. etcd semantics §7, §11."""

    def setUp(self) -> None:
        self.leader, self.member = LocalMember(), LocalMember()
        self.leader.member_id = self.leader.leader = LEADER
        self.member.lead_by(LEADER)
        for each in (self.leader, self.member):
            self.addCleanup(each.stop)
            for lease_id, ttl_s in ((7, 10), (8, 5)):
                each.lessor.grant(lease_id, ttl_s)
        self.site = LeaseSite(PrimaryLessor(self.leader), self.leader.clock)
        self.member.peers.sites[LEADER] = self.answer
        self.paths: list[str] = []

    def answer(self, method: str, path: str, body: bytes) -> Deferred[Answer]:
        """The leader's peer port."""
        self.paths.append(path)
        request = PeerRequest(path, {}, body)
        return self.site.renew(request) if path == "/leases" else self.site.time_to_live(request)

    def open(self) -> RecordedCall:
        self.call = self.member.call("LeaseKeepAlive")
        return self.call

    def ask(self, *lease_ids: int) -> None:
        for lease_id in lease_ids:
            assert self.call.on_message is not None
            self.call.on_message(LeaseKeepAliveRequest(ID=lease_id).SerializeToString())

    def answers(self) -> list[tuple[int, int]]:
        responses = [LeaseKeepAliveResponse.FromString(each) for each in self.call.sent]
        self.assertEqual({each.header.member_id for each in responses} - {0xA}, set())
        return [(each.ID, each.TTL) for each in responses]

    def test_renewals_are_the_leaders(self) -> None:
        """Each is answered in order with the leader's TTL and our header; an unknown lease has 0."""
        self.open()
        self.ask(7, 99, 8, 7)
        self.assertEqual(self.answers(), [(7, 10), (99, 0), (8, 5), (7, 10)])
        self.assertEqual((self.leader.leases.renewed, self.member.leases.renewed), (3, 0))
        assert self.call.on_half_close is not None
        self.call.on_half_close()
        self.assertEqual((self.call.done, self.call.error), (True, None))

    def test_a_leader_that_waits_holds_up_one_stream(self) -> None:
        """A renewal that has to wait holds up those behind it on its stream, and no other stream."""
        self.leader.holding = True
        self.leader.clock.advance(5)
        first = self.open()
        self.ask(8, 7)
        assert first.on_half_close is not None
        first.on_half_close()
        self.open()
        self.ask(7)
        self.assertEqual(self.answers(), [(7, 10)])
        self.assertEqual((first.sent, first.done), ([], False))
        self.leader.clock.advance(0.5)
        self.leader.commit()
        self.call = first
        self.assertEqual(self.answers(), [(8, 0), (7, 10)])
        self.assertTrue(first.done)

    def test_time_to_live_is_the_leaders(self) -> None:
        """What is left, and the keys, come from there; an unknown lease has -1."""
        self.leader.lessor.attach(7, b"k")
        self.leader.clock.advance(2)
        call = self.member.call("LeaseTimeToLive", LeaseTimeToLiveRequest(ID=7, keys=True))
        found = LeaseTimeToLiveResponse.FromString(call.sent[0])
        self.assertEqual((found.TTL, found.grantedTTL, list(found.keys), found.header.member_id), (8, 10, [b"k"], 0xA))
        call = self.member.call("LeaseTimeToLive", LeaseTimeToLiveRequest(ID=99))
        self.assertEqual(LeaseTimeToLiveResponse.FromString(call.sent[0]).TTL, -1)
        self.assertEqual(self.paths, ["/leases/internal"] * 2)

    def test_leases_are_our_own(self) -> None:
        """The list needs no leader."""
        self.member.lead_by(0)
        answer = LeaseLeasesResponse.FromString(self.member.call("LeaseLeases").sent[0])
        self.assertEqual([each.ID for each in answer.leases], [8, 7])
        self.assertEqual(self.paths, [])

    def test_nobody_leads(self) -> None:
        """Streams and questions end with etcd's error after the time of a request."""
        self.member.lead_by(0)
        self.open()
        self.ask(7)
        question = self.member.call("LeaseTimeToLive", LeaseTimeToLiveRequest(ID=7))
        self.member.clock.advance(7)
        self.assertIsInstance(self.call.error, NoLeaderError)
        self.assertIsInstance(question.error, NoLeaderError)

    def test_the_leader_does_not_answer(self) -> None:
        """The same, by another name."""
        del self.member.peers.sites[LEADER]
        self.open()
        self.ask(7, 8)
        self.member.clock.advance(7)
        self.assertIsInstance(self.call.error, RequestTimeoutError)
        self.assertEqual(len(self.member.peers.take()), 1)

    def test_a_client_that_leaves(self) -> None:
        """What was asked for it is given up."""
        del self.member.peers.sites[LEADER]
        self.open()
        self.ask(7, 8)
        question = self.member.call("LeaseTimeToLive", LeaseTimeToLiveRequest(ID=7))
        for call in (self.call, question):
            call.done = True
            assert call.on_cancel is not None
            call.on_cancel()
        self.assertEqual([each.cancelled for each in self.member.peers.take()], [True, True])
        self.assertEqual((self.call.sent, self.call.error, question.sent, question.error), ([], None, [], None))
        self.member.clock.advance(0.5)
        self.assertEqual(len(self.member.clock.getDelayedCalls()), 1)  # the look at ended leases

    def test_a_client_that_does_not_read(self) -> None:
        """Is asked for no more before it does."""
        paused: list[bool] = []
        call = self.open()
        self.patch(RecordedCall, "pause", lambda _: paused.append(True))
        self.patch(RecordedCall, "resume", lambda _: paused.append(False))
        del self.member.peers.sites[LEADER]
        self.ask(7)
        self.assertEqual(paused, [True])
        call.room = False
        (asked,) = self.member.peers.take()
        asked.answer(200, LeaseKeepAliveResponse(ID=7, TTL=10).SerializeToString())
        self.assertEqual((self.answers(), paused[-1]), ([(7, 10)], True))
        call.room = True
        assert call.on_writable is not None
        call.on_writable()
        self.assertFalse(paused[-1])
