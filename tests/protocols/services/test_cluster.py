"""The Cluster service, without a cluster."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.calls import RecordedCall
from tests.changingmember import ME, ChangingMember, learner, started
from twistedkv.errors import InvalidMemberURLsError, MemberNotFoundError, NoLeaderError, UnhealthyError
from twistedkv.pb import rpc_pb2
from twistedkv.pb.rpc_pb2 import (
    MemberAddRequest,
    MemberAddResponse,
    MemberListRequest,
    MemberListResponse,
    MemberPromoteRequest,
    MemberPromoteResponse,
    MemberRemoveRequest,
    MemberRemoveResponse,
    MemberUpdateRequest,
    MemberUpdateResponse,
)
from twistedkv.protocols.services.cluster import ClusterService
from twistedkv.reconfiguration import Reconfiguration

LEARNER = 9
NEW = "http://new:2380"


class ClusterServiceTests(SynchronousTestCase):
    """One voter and one learner."""

    def setUp(self) -> None:
        self.member = ChangingMember([started(ME), learner(LEARNER)])
        service = ClusterService(self.member, Reconfiguration(self.member, lambda: 1.0))
        self.methods = {method.path.rpartition("/")[2]: method for method in service.methods()}

    def call(self, name: str, request: Any) -> RecordedCall:
        return RecordedCall(self.methods[name], request.SerializeToString()).run()

    def answer(self, name: str, request: Any, response: Any) -> Any:
        """The answer to a call, whose header is that of a cluster without a revision."""
        call = self.call(name, request)
        self.assertIsNone(call.error)
        found = response.FromString(call.sent[0])
        header = found.header
        self.assertEqual((header.cluster_id, header.member_id, header.revision, header.raft_term), (0xC1, ME, 0, 3))
        return found

    def ids(self, response: Any) -> list[int]:
        return [each.ID for each in response.members]

    def test_listing(self) -> None:
        """All that is known of each member, by ascending id."""
        listed = self.answer("MemberList", MemberListRequest(), MemberListResponse).members
        mine = rpc_pb2.Member(ID=ME, name="m1", peerURLs=["http://m1:2380"], clientURLs=["http://m1:2379"])
        theirs = rpc_pb2.Member(ID=LEARNER, name="m9", peerURLs=["http://m9:2380"], isLearner=True)
        self.assertEqual(list(listed), [mine, theirs])

    def test_listing_without_a_quorum(self) -> None:
        """Only a linearizable one needs it."""
        self.member.readable = False
        self.assertIsInstance(self.call("MemberList", MemberListRequest(linearizable=True)).error, NoLeaderError)
        self.assertIsNone(self.call("MemberList", MemberListRequest()).error)
        self.member.readable = True
        self.assertIsNone(self.call("MemberList", MemberListRequest(linearizable=True)).error)

    def test_adding(self) -> None:
        """The answer has the new member and all of them."""
        added = self.answer("MemberAdd", MemberAddRequest(peerURLs=[NEW]), MemberAddResponse)
        self.assertEqual(added.member, rpc_pb2.Member(ID=added.member.ID, peerURLs=[NEW]))
        self.assertEqual(self.ids(added), sorted([ME, LEARNER, added.member.ID]))
        self.answer("MemberRemove", MemberRemoveRequest(ID=LEARNER), MemberRemoveResponse)
        self.answer("MemberRemove", MemberRemoveRequest(ID=added.member.ID), MemberRemoveResponse)
        request = MemberAddRequest(peerURLs=["http://other:2380"], isLearner=True)
        self.assertTrue(self.answer("MemberAdd", request, MemberAddResponse).member.isLearner)

    def test_removing_updating_promoting(self) -> None:
        """Each answer has the members as they are then."""
        request = MemberUpdateRequest(ID=LEARNER, peerURLs=[NEW])
        updated = self.answer("MemberUpdate", request, MemberUpdateResponse)
        self.assertEqual(list(updated.members[1].peerURLs), [NEW])
        promoted = self.answer("MemberPromote", MemberPromoteRequest(ID=LEARNER), MemberPromoteResponse)
        self.assertFalse(promoted.members[1].isLearner)
        removed = self.answer("MemberRemove", MemberRemoveRequest(ID=LEARNER), MemberRemoveResponse)
        self.assertEqual(self.ids(removed), [ME])

    def test_refusals(self) -> None:
        """What is refused before the log, and by it."""
        self.assertIsInstance(self.call("MemberAdd", MemberAddRequest()).error, InvalidMemberURLsError)
        self.assertIsInstance(self.call("MemberUpdate", MemberUpdateRequest(ID=ME)).error, InvalidMemberURLsError)
        self.assertIsInstance(self.call("MemberRemove", MemberRemoveRequest(ID=5)).error, MemberNotFoundError)
        self.assertIsInstance(self.call("MemberPromote", MemberPromoteRequest(ID=5)).error, MemberNotFoundError)
        self.member.membership.members[2] = started(2)
        self.assertIsInstance(self.call("MemberAdd", MemberAddRequest(peerURLs=[NEW])).error, UnhealthyError)

    def test_a_client_that_leaves(self) -> None:
        """Nothing waits for its answer, neither here nor at the leader."""
        self.member.leader = 0
        promoting = self.call("MemberPromote", MemberPromoteRequest(ID=LEARNER))
        self.member.holding = True
        removing = self.call("MemberRemove", MemberRemoveRequest(ID=LEARNER))
        for call in (promoting, removing):
            self.assertFalse(call.done)
            call.done = True
            assert call.on_cancel is not None
            call.on_cancel()
            self.assertIsNone(call.error)
        self.assertEqual((self.member.reactor.getDelayedCalls(), self.member.leader_changes), ([], []))
        self.member.apply()
        self.assertEqual(removing.sent, [])

    def test_the_leader_that_is_asked(self) -> None:
        """A follower's answer is the leader's."""
        self.member.leader = 2
        call = self.call("MemberPromote", MemberPromoteRequest(ID=LEARNER))
        self.member.peers.take()[0].answer(200, b'[{"id":9,"peerURLs":["http://m9:2380"],"name":"m9"}]')
        self.assertEqual(self.ids(MemberPromoteResponse.FromString(call.sent[0])), [LEARNER])
