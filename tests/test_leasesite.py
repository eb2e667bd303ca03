"""What the leader answers to other members."""

from __future__ import annotations

from types import SimpleNamespace

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.localmember import LocalMember
from twistedkv.errors import NoLeaderError
from twistedkv.leaseprimary import PrimaryLessor
from twistedkv.leasesite import APPLY_TIMEOUT_S, ENDED_TIMEOUT_S, MAX_BODY_BYTES, LeaseSite
from twistedkv.pb.lease_pb2 import LeaseInternalRequest, LeaseInternalResponse
from twistedkv.pb.rpc_pb2 import LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseTimeToLiveRequest
from twistedkv.protocols.answers import Answer

BEHIND = (408, b"waiting for node to catch up its applied index has timed out\n")
NOT_FOUND = (404, b"lease not found\n")
NO_MESSAGE = (400, b"error unmarshalling request\n")
NOT_PRIMARY = (400, b"not a primary lessor\n")


class LeaseSiteTests(SynchronousTestCase):
    """Statuses and texts are those of a real etcd 3.5.1, which was asked."""

    def setUp(self) -> None:
        self.member = LocalMember()
        self.member.lessor.grant(7, 5)
        self.member.lessor.attach(7, b"k")
        self.site = LeaseSite(PrimaryLessor(self.member), self.member.clock)

    def tearDown(self) -> None:
        self.member.stop()
        self.assertEqual(self.member.clock.getDelayedCalls(), [])

    def renew(self, lease_id: int = 7) -> Deferred[Answer]:
        return self.post(LeaseKeepAliveRequest(ID=lease_id).SerializeToString())

    def post(self, body: bytes) -> Deferred[Answer]:
        return self.site.renew(SimpleNamespace(body=body))

    def time_to_live(self, lease_id: int = 7, keys: bool = False) -> Deferred[Answer]:
        request = LeaseInternalRequest(LeaseTimeToLiveRequest=LeaseTimeToLiveRequest(ID=lease_id, keys=keys))
        return self.site.time_to_live(SimpleNamespace(body=request.SerializeToString()))

    def of(self, answered: Deferred[Answer]) -> tuple[int, bytes]:
        """Status and body."""
        answer = self.successResultOf(answered)
        return answer.status, answer.body

    def test_renewing(self) -> None:
        """The TTL, without a header."""
        answer = self.successResultOf(self.renew())
        self.assertEqual((answer.status, answer.fields.pairs), (200, ((b"Content-Type", b"application/protobuf"),)))
        self.assertEqual(answer.body, LeaseKeepAliveResponse(ID=7, TTL=5).SerializeToString())
        self.assertEqual(self.of(self.renew(8)), NOT_FOUND)

    def test_time_to_live(self) -> None:
        """What is left, with an empty header that must be there."""
        status, body = self.of(self.time_to_live(keys=True))
        found = LeaseInternalResponse.FromString(body).LeaseTimeToLiveResponse
        self.assertEqual((status, found.ID, found.TTL, found.grantedTTL, list(found.keys)), (200, 7, 5, 5, [b"k"]))
        self.assertTrue(body.startswith(b"\n\r\n\0") or found.HasField("header"))
        self.assertEqual(found.header.ByteSize(), 0)
        self.assertEqual(self.of(self.time_to_live(8)), NOT_FOUND)

    def test_what_is_no_question(self) -> None:
        """Bytes that are no message, a question about nothing, and more bytes than any question has."""
        for body in (b"xyz", b"\xff" * 20):
            self.assertEqual(self.of(self.post(body)), NO_MESSAGE)
            self.assertEqual(self.of(self.site.time_to_live(SimpleNamespace(body=body))), NO_MESSAGE)
        self.assertEqual(self.of(self.site.time_to_live(SimpleNamespace(body=b""))), NO_MESSAGE)
        self.assertEqual(self.of(self.post(b"\0" * (MAX_BODY_BYTES + 1)))[0], 413)
        self.assertEqual(self.of(self.post(b"")), NOT_FOUND)  # lease 0

    def test_a_member_that_does_not_lead(self) -> None:
        """Says so, to both questions."""
        self.member.lead_by(0xB)
        self.assertEqual(self.of(self.renew()), NOT_PRIMARY)
        self.assertEqual(self.of(self.time_to_live()), NOT_PRIMARY)

    def test_a_leader_that_is_behind(self) -> None:
        """Waits for a second, as etcd does."""
        self.member.committed = 9
        asked = [self.renew(), self.time_to_live()]
        self.member.clock.advance(APPLY_TIMEOUT_S - 0.1)
        for each in asked:
            self.assertNoResult(each)
        self.member.clock.advance(0.1)
        self.assertEqual([self.of(each) for each in asked], [BEHIND] * 2)
        late = self.renew()
        self.member.applied = 9
        self.member.apply_wait.applied(9)
        self.assertEqual(self.of(late)[0], 200)

    def test_a_leader_that_is_alone(self) -> None:
        """Without the quorum's word nothing is renewed."""
        self.member.may_read = False
        renewal = self.renew()
        self.assertNoResult(renewal)
        self.member.refusals.pop()(NoLeaderError())
        self.assertEqual(self.of(renewal), (400, b"etcdserver: no leader\n"))
        renewal = self.renew()
        self.member.clock.advance(APPLY_TIMEOUT_S)
        self.assertEqual(self.of(renewal), BEHIND)
        self.assertEqual(self.member.leases.renewed, 0)

    def test_a_lease_that_has_ended(self) -> None:
        """Is gone once it is revoked; if that takes too long, who asked is told to ask again."""
        self.member.holding = True
        self.member.clock.advance(5)
        renewal = self.renew()
        self.member.clock.advance(0.5)
        self.assertNoResult(renewal)
        self.member.commit()
        self.assertEqual(self.of(renewal), NOT_FOUND)
        self.member.lessor.grant(8, 5)
        self.member.clock.advance(5)
        renewal = self.renew(8)
        self.member.clock.advance(ENDED_TIMEOUT_S)
        self.assertEqual(self.of(renewal), BEHIND)

    def test_the_lead_is_lost_meanwhile(self) -> None:
        """Who asked asks the new leader."""
        self.member.holding = True
        self.member.clock.advance(5)
        renewal = self.renew()
        self.member.lead_by(0xB)
        self.assertEqual(self.of(renewal), NOT_PRIMARY)
