"""The Lock service over a member in memory."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.calls import RecordedCall
from tests.localmember import LocalMember
from twistedkv.errors import Code, KVError
from twistedkv.pb.rpc_pb2 import DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest
from twistedkv.pb.v3lock_pb2 import LockRequest, LockResponse, UnlockRequest, UnlockResponse


class LockTests(SynchronousTestCase):
    """One holder at a time, in the order of their coming."""

    def setUp(self) -> None:
        self.member = LocalMember()
        self.addCleanup(self.member.stop)
        for lease_id in (0x14, 0x15, 0x16):
            self.member.call("LeaseGrant", LeaseGrantRequest(ID=lease_id, TTL=60))

    def lock(self, lease: int = 0, name: bytes = b"m") -> RecordedCall:
        return self.member.call("Lock", LockRequest(name=name, lease=lease))

    def unlock(self, key: bytes) -> UnlockResponse:
        call = self.member.call("Unlock", UnlockRequest(key=key))
        self.assertIsNone(call.error)
        return UnlockResponse.FromString(call.sent[0])

    def held(self, call: RecordedCall) -> tuple[bytes, int]:
        """Key and revision of a lock that was got."""
        self.assertIsNone(call.error)
        (message,) = call.sent
        response = LockResponse.FromString(message)
        return response.key, response.header.revision

    def refusal(self, call: RecordedCall) -> str:
        assert isinstance(call.error, KVError)
        self.assertEqual(call.error.code, Code.UNKNOWN)
        return call.error.text

    @property
    def keys(self) -> list[bytes]:
        return sorted(self.member.store.index.entries)

    def test_a_free_lock_is_got_at_once(self) -> None:
        """The key is the name and the lease in hexadecimal; asking again with the same lease changes nothing."""
        self.assertEqual(self.held(self.lock(0x14)), (b"m/14", 2))
        self.assertEqual(self.held(self.lock(0x14)), (b"m/14", 2))
        self.assertEqual(self.member.lessor.keys(0x14), {b"m/14"})

    def test_a_negative_lease_is_written_with_its_sign(self) -> None:
        """As Go prints it."""
        self.member.call("LeaseGrant", LeaseGrantRequest(ID=-5, TTL=60))
        self.assertEqual(self.held(self.lock(-5))[0], b"m/-5")

    def test_without_a_lease_one_is_made(self) -> None:
        """A lock without a lease ends after a minute unless the client keeps the new lease alive."""
        key, _ = self.held(self.lock())
        lease = self.member.lessor.get(int(key.removeprefix(b"m/"), 16))
        self.assertEqual(lease.ttl_s, 60)

    def test_waiters_come_one_after_the_other(self) -> None:
        """Each unlock lets in the one who came first, with a larger revision than any holder before."""
        first, second, third = self.lock(0x16), self.lock(0x14), self.lock(0x15)
        self.assertEqual([call.done for call in (first, second, third)], [True, False, False])
        self.unlock(b"m/16")
        self.assertEqual([call.done for call in (second, third)], [True, False])
        self.unlock(b"m/14")
        revisions = [self.held(call)[1] for call in (first, second, third)]
        self.assertEqual(revisions, sorted(set(revisions)))
        self.assertEqual(self.keys, [b"m/15"])

    def test_names_do_not_meet(self) -> None:
        """Locks of different names, one the beginning of the other, have nothing to do with each other."""
        self.held(self.lock(0x14, b"a"))
        self.held(self.lock(0x15, b"ab"))
        self.held(self.lock(0x16, b""))
        self.assertEqual(self.keys, [b"/16", b"a/14", b"ab/15"])

    def test_a_waiter_in_the_middle_that_goes_away(self) -> None:
        """Who gives up leaves the queue, and those behind go on waiting for who holds it."""
        self.lock(0x14)
        second, third = self.lock(0x15), self.lock(0x16)
        second.done = True  # as the transport sets it
        assert second.on_cancel is not None
        second.on_cancel()
        self.assertEqual(self.keys, [b"m/14", b"m/16"])
        self.assertFalse(third.done)
        self.unlock(b"m/14")
        self.held(third)
        self.assertEqual(second.sent, [])

    def test_the_end_of_a_lease_unlocks(self) -> None:
        """A holder that dies loses the lock with its lease."""
        self.lock(0x14)
        waiter = self.lock(0x15)
        self.member.call("LeaseRevoke", LeaseRevokeRequest(ID=0x14))
        self.held(waiter)

    def test_a_waiter_whose_lease_ended_does_not_get_it(self) -> None:
        """When its turn comes, a waiter without a key is told that its session is over."""
        self.lock(0x14)
        waiter = self.lock(0x15)
        self.member.call("LeaseRevoke", LeaseRevokeRequest(ID=0x15))
        self.assertFalse(waiter.done)
        self.unlock(b"m/14")
        self.assertEqual(self.refusal(waiter), "mutex: session is expired")

    def test_a_missing_lease_is_refused(self) -> None:
        """With etcd's text, but without its code, as all errors inside."""
        self.assertEqual(self.refusal(self.lock(99)), "etcdserver: requested lease not found")

    def test_a_full_database_refuses(self) -> None:
        """The steps of a lock meet the quota as a client's do."""
        self.member.full = True
        self.assertEqual(self.refusal(self.lock()), "etcdserver: mvcc: database space exceeded")

    def test_unlocking(self) -> None:
        """A key that does not exist is unlocked already; an empty one is refused."""
        self.assertEqual(self.unlock(b"m/14").header.revision, 1)
        call = self.member.call("Unlock", UnlockRequest())
        self.assertEqual(self.refusal(call), "etcdserver: key is not provided")

    def test_many_changes_at_once(self) -> None:
        """Holder and waiters that go in one batch leave the lock to who is left."""
        self.lock(0x14)
        second, third = self.lock(0x15), self.lock(0x16)
        self.member.holding = True
        self.member.call("DeleteRange", DeleteRangeRequest(key=b"m/15"))
        self.member.call("DeleteRange", DeleteRangeRequest(key=b"m/14"))
        self.member.call("Put", PutRequest(key=b"m/14"))  # somebody new, behind them
        self.member.holding = False
        self.member.commit()
        self.held(third)
        self.assertEqual(self.refusal(second), "mutex: session is expired")

    def test_nothing_is_left_behind(self) -> None:
        """When all is unlocked nobody listens any more."""
        self.lock(0x14)
        waiter = self.lock(0x15)
        self.unlock(b"m/14")
        self.held(waiter)
        self.unlock(b"m/15")
        self.assertIsNone(self.member.store.listener)
