"""The Election service over a member in memory."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.calls import RecordedCall
from tests.localmember import LocalMember
from twistedkv.errors import Code, KVError
from twistedkv.pb.rpc_pb2 import DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest
from twistedkv.pb.v3election_pb2 import (
    CampaignRequest,
    CampaignResponse,
    LeaderKey,
    LeaderRequest,
    LeaderResponse,
    ProclaimRequest,
    ProclaimResponse,
    ResignRequest,
    ResignResponse,
)


class ElectionTests(SynchronousTestCase):
    """Campaigns, proclamations, resignations and who hears of them."""

    def setUp(self) -> None:
        self.member = LocalMember()
        self.addCleanup(self.member.stop)
        for lease_id in (0x14, 0x15):
            self.member.call("LeaseGrant", LeaseGrantRequest(ID=lease_id, TTL=60))

    def campaign(self, lease: int, value: bytes) -> RecordedCall:
        return self.member.call("Campaign", CampaignRequest(name=b"e", lease=lease, value=value))

    def elected(self, call: RecordedCall) -> LeaderKey:
        self.assertIsNone(call.error)
        return CampaignResponse.FromString(call.sent[0]).leader

    def proclaim(self, leader: LeaderKey | None, value: bytes) -> RecordedCall:
        return self.member.call("Proclaim", ProclaimRequest(leader=leader, value=value))

    def resign(self, leader: LeaderKey | None) -> RecordedCall:
        return self.member.call("Resign", ResignRequest(leader=leader))

    def observe(self) -> RecordedCall:
        return self.member.call("Observe", LeaderRequest(name=b"e"))

    def seen(self, call: RecordedCall) -> list[tuple[int, bytes, bytes]]:
        """Header revision, key and value of what an observer got."""
        responses = [LeaderResponse.FromString(each) for each in call.sent]
        return [(each.header.revision, each.kv.key, each.kv.value) for each in responses]

    def refusal(self, call: RecordedCall) -> str:
        assert isinstance(call.error, KVError)
        self.assertEqual(call.error.code, Code.UNKNOWN)
        return call.error.text

    def leader(self) -> tuple[bytes, bytes]:
        response = LeaderResponse.FromString(self.member.call("Leader", LeaderRequest(name=b"e")).sent[0])
        return response.kv.key, response.kv.value

    def test_the_first_candidate_leads(self) -> None:
        """The key names election and lease; the answer names the revision by which the leader proves itself."""
        leader = self.elected(self.campaign(0x14, b"v"))
        self.assertEqual((leader.name, leader.key, leader.rev, leader.lease), (b"e", b"e/14", 2, 0x14))
        self.assertEqual(self.leader(), (b"e/14", b"v"))

    def test_nobody_leads(self) -> None:
        """Before the first campaign there is no leader."""
        call = self.member.call("Leader", LeaderRequest(name=b"e"))
        self.assertEqual(self.refusal(call), "election: no leader")

    def test_campaigning_again_proclaims(self) -> None:
        """Who leads already changes its value, and the answer is as of its election."""
        self.campaign(0x14, b"v")
        again = self.campaign(0x14, b"w")
        response = CampaignResponse.FromString(again.sent[0])
        self.assertEqual((response.leader.rev, response.header.revision), (2, 2))
        self.assertEqual(self.leader(), (b"e/14", b"w"))
        self.assertEqual(self.member.store.revision, 3)
        self.campaign(0x14, b"w")
        self.assertEqual(self.member.store.revision, 3)

    def test_the_next_candidate_waits(self) -> None:
        """A campaign is answered when all who came before are gone, with the header of its beginning."""
        leader = self.elected(self.campaign(0x14, b"v"))
        waiter = self.campaign(0x15, b"w")
        self.assertFalse(waiter.done)
        resigned = ResignResponse.FromString(self.resign(leader).sent[0])
        self.assertEqual(resigned.header.revision, 4)
        self.assertEqual(self.elected(waiter).rev, 3)
        self.assertEqual(CampaignResponse.FromString(waiter.sent[0]).header.revision, 3)
        self.assertEqual(self.leader(), (b"e/15", b"w"))

    def test_a_candidate_that_goes_away_resigns(self) -> None:
        """Its key is gone with it."""
        self.campaign(0x14, b"v")
        waiter = self.campaign(0x15, b"w")
        waiter.done = True
        assert waiter.on_cancel is not None
        waiter.on_cancel()
        self.assertEqual(sorted(self.member.store.index.entries), [b"e/14"])

    def test_a_missing_lease_is_refused(self) -> None:
        """With etcd's text."""
        self.assertEqual(self.refusal(self.campaign(99, b"v")), "etcdserver: requested lease not found")

    def test_proclaiming(self) -> None:
        """The leader changes its value; without its key, with another revision, or once replaced, nobody does."""
        leader = self.elected(self.campaign(0x14, b"v"))
        answer = ProclaimResponse.FromString(self.proclaim(leader, b"w").sent[0])
        self.assertEqual((answer.header.revision, self.leader()), (3, (b"e/14", b"w")))
        self.assertEqual(self.refusal(self.proclaim(None, b"x")), '"leader" field must be provided')
        wrong = LeaderKey(name=b"e", key=b"e/14", rev=3, lease=0x14)
        self.assertEqual(self.refusal(self.proclaim(wrong, b"x")), "election: not leader")
        self.assertEqual(self.refusal(self.proclaim(LeaderKey(rev=2), b"x")), "etcdserver: key is not provided")
        self.member.call("LeaseRevoke", LeaseRevokeRequest(ID=0x14))
        self.assertEqual(self.refusal(self.proclaim(leader, b"x")), "election: not leader")

    def test_proclaiming_without_a_lease(self) -> None:
        """etcd makes a lease of a minute then, and moves the key there."""
        leader = self.elected(self.campaign(0x14, b"v"))
        leader.lease = 0
        self.assertIsNone(self.proclaim(leader, b"w").error)
        self.assertEqual(self.member.lessor.keys(0x14), frozenset())

    def test_resigning(self) -> None:
        """Resigning twice, or with a revision that is not one's own, changes nothing and is no error."""
        leader = self.elected(self.campaign(0x14, b"v"))
        self.assertIsNone(self.resign(LeaderKey(name=b"e", key=b"e/14", rev=9, lease=0x14)).error)
        self.assertEqual(self.leader(), (b"e/14", b"v"))
        for _ in range(2):
            self.assertIsNone(self.resign(leader).error)
        self.assertEqual(self.member.store.revision, 3)
        self.assertEqual(self.refusal(self.resign(None)), '"leader" field must be provided')

    def test_an_observer_sees_every_leader(self) -> None:
        """Who leads now, each proclamation, the next leader, and then whoever comes, in order and once each."""
        leader = self.elected(self.campaign(0x14, b"a"))
        observer = self.observe()
        self.campaign(0x15, b"z")
        self.proclaim(leader, b"b")
        self.resign(leader)
        self.member.call("DeleteRange", DeleteRangeRequest(key=b"e/15"))
        self.member.call("Put", PutRequest(key=b"e/zz", value=b"foreign"))
        self.member.call("Put", PutRequest(key=b"e/zz", value=b"again"))
        self.assertEqual(
            self.seen(observer),
            [
                (2, b"e/14", b"a"),
                (4, b"e/14", b"b"),
                (5, b"e/15", b"z"),
                (7, b"e/zz", b"foreign"),
                (8, b"e/zz", b"again"),
            ],
        )
        self.assertFalse(observer.done)

    def test_an_observer_of_nobody_waits(self) -> None:
        """Before the first leader an observer hears nothing, deletions included."""
        observer = self.observe()
        self.member.call("Put", PutRequest(key=b"other"))
        self.assertEqual(observer.sent, [])
        self.campaign(0x14, b"a")
        self.assertEqual(self.seen(observer), [(3, b"e/14", b"a")])

    def test_a_slow_observer_misses_nothing(self) -> None:
        """An observer whose client does not read is told later, from where it was, and costs no memory meanwhile."""
        leader = self.elected(self.campaign(0x14, b"0"))
        observer = self.observe()
        observer.room = False
        for number in range(1, 50):
            self.proclaim(leader, b"%d" % number)
        self.assertEqual(len(observer.sent), 2)  # it was asked whether there is room after the first one
        observer.room = True
        assert observer.on_writable is not None
        observer.on_writable()
        self.member.clock.pump([0.0] * 100)
        self.assertEqual([value for _, _, value in self.seen(observer)], [b"%d" % number for number in range(50)])

    def test_an_observer_that_goes_away_leaves_nothing(self) -> None:
        """Nobody listens any more."""
        self.campaign(0x14, b"a")
        observer = self.observe()
        observer.done = True
        assert observer.on_cancel is not None
        observer.on_cancel()
        self.assertIsNone(self.member.store.listener)
        self.assertEqual(observer.error, None)
