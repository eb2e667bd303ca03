"""Leases on a clock of the tests' own: what exists, when it ends, and that it never ends early."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.errors import LeaseExistsError, LeaseNotFoundError, LeaseTTLTooLargeError
from twistedkv.lease import (
    MAX_TTL_S,
    RETRY_S,
    Deadlines,
    Lease,
    Lessor,
    encode_record,
    load_leases,
    min_ttl_s,
    record_key,
)
from twistedkv.pb.kv_pb2 import KeyValue
from twistedkv.storage.keyindex import Evicted

_IDS = (1, 2, -5)


class Listener:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def granted(self, lease: Lease) -> None:
        self.told.append(("granted", lease.id))

    def revoked(self, lease: Lease) -> None:
        self.told.append(("revoked", lease.id))


class LessorTests(SynchronousTestCase):
    """Which leases exist. etcd semantics §7."""

    def setUp(self) -> None:
        self.lessor = Lessor(min_ttl_s=2)

    def test_a_lease_is_granted_as_asked(self) -> None:
        """Any id but 0 may be chosen, negative ones too."""
        for lease_id in (7, -5, 2**63 - 1, -(2**63)):
            self.assertEqual(self.lessor.grant(lease_id, 60).ttl_s, 60)
        self.assertEqual(len(self.lessor), 4)
        self.assertRaises(LeaseNotFoundError, self.lessor.grant, 0, 60)

    def test_short_times_are_raised_and_too_long_ones_refused(self) -> None:
        """A TTL below the minimum, 0 and negative ones among them, becomes the minimum; one over 9e9 s is refused."""
        for lease_id, ttl_s in enumerate((2, 1, 0, -1, -(2**63)), start=1):
            self.assertEqual(self.lessor.grant(lease_id, ttl_s).ttl_s, 2)
        self.assertEqual(self.lessor.grant(10, MAX_TTL_S).ttl_s, MAX_TTL_S)
        self.assertRaises(LeaseTTLTooLargeError, self.lessor.grant, 11, MAX_TTL_S + 1)
        self.assertNotIn(11, self.lessor)

    def test_an_id_is_granted_once(self) -> None:
        """A second lease with the id of a living one is refused, and that one keeps its time and keys."""
        self.lessor.grant(7, 60)
        self.lessor.attach(7, b"k")
        self.assertRaises(LeaseExistsError, self.lessor.grant, 7, 5)
        self.assertEqual((self.lessor.get(7).ttl_s, self.lessor.keys(7)), (60, {b"k"}))

    def test_a_lease_is_revoked_once(self) -> None:
        """A revoked lease is gone with all that hung on it, and its id is free again."""
        self.lessor.grant(7, 60)
        self.lessor.attach(7, b"k")
        self.assertEqual(self.lessor.revoke(7).keys, {b"k"})
        self.assertRaises(LeaseNotFoundError, self.lessor.revoke, 7)
        self.assertRaises(LeaseNotFoundError, self.lessor.get, 7)
        self.assertRaises(LeaseNotFoundError, self.lessor.check, 7)
        self.lessor.detach(7, b"k")
        self.lessor.grant(7, 60)
        self.assertEqual(self.lessor.keys(7), frozenset())

    def test_no_lease_needs_no_check(self) -> None:
        """Lease 0 stands for no lease."""
        self.lessor.check(0)

    def test_keys_come_and_go(self) -> None:
        """A key hangs on its lease until it is taken off."""
        self.lessor.grant(7, 60)
        self.lessor.attach(7, b"a")
        self.lessor.attach(7, b"b")
        self.lessor.detach(7, b"a")
        self.lessor.detach(7, b"never there")
        self.assertEqual(self.lessor.keys(7), {b"b"})

    def test_the_listener_hears_of_what_happened_only(self) -> None:
        """Whoever counts the time hears of grants and revocations, not of those that were refused."""
        listener = self.lessor.listener = Listener()
        self.lessor.grant(7, 60)
        self.assertRaises(LeaseExistsError, self.lessor.grant, 7, 60)
        self.lessor.revoke(7)
        self.assertRaises(LeaseNotFoundError, self.lessor.revoke, 7)
        self.assertEqual(listener.told, [("granted", 7), ("revoked", 7)])
        self.assertEqual((self.lessor.granted, self.lessor.revoked), (1, 1))

    def test_a_checkpoint_is_what_a_new_leader_begins_with(self) -> None:
        """A checkpoint shortens what a lease begins anew with; 0 takes it back; a lease that is gone is no error."""
        lease = self.lessor.grant(7, 600)
        self.assertIs(self.lessor.checkpoint(7, 350), lease)
        self.assertEqual((lease.initial_s, lease.ttl_s), (350, 600))
        self.lessor.checkpoint(7, 0)
        self.assertEqual(lease.initial_s, 600)
        self.assertIsNone(self.lessor.checkpoint(8, 350))

    def test_the_leases_of_another_state(self) -> None:
        """Leases and keys are the other state's; the listener hears what went and came; counts do not go back."""
        for lease_id in (1, 2, 3):
            self.lessor.grant(lease_id, 60)
        self.lessor.revoke(3)
        self.lessor.attach(1, b"old")
        listener = self.lessor.listener = Listener()
        other = Lessor(9, [Lease(1, 60, 20), Lease(2, 90), Lease(4, 60)])
        other.attach(1, b"new")
        self.lessor.restore(other)
        self.assertEqual(listener.told, [("revoked", 2), ("granted", 2), ("granted", 4)])
        self.assertEqual(sorted(lease.id for lease in self.lessor), [1, 2, 4])
        self.assertEqual((self.lessor.keys(1), self.lessor.get(1).initial_s), ({b"new"}, 20))
        self.assertEqual((self.lessor.granted, self.lessor.revoked), (3, 1))
        self.assertEqual(self.lessor.grant(5, 0).ttl_s, 2)
        self.lessor.listener = None
        self.lessor.restore(Lessor())
        self.assertEqual(len(self.lessor), 0)

    def test_the_minimum_outlives_an_election(self) -> None:
        """The shortest TTL is one and a half election timeouts in whole ticks, rounded up to seconds."""
        self.assertEqual(min_ttl_s(10, 100), 2)
        self.assertEqual(min_ttl_s(9, 100), 2)  # 13 ticks
        self.assertEqual(min_ttl_s(100, 10), 2)
        self.assertEqual(min_ttl_s(5, 20), 1)
        self.assertEqual(min_ttl_s(20, 100), 3)


class RecordTests(SynchronousTestCase):
    """What the database has of a lease."""

    def test_a_lease_comes_back_from_its_record(self) -> None:
        """Id, TTL and checkpoint are recorded under the id's 8 bytes; a lease of the etcd format is understood."""
        leases = [Lease(7, 60), Lease(-5, 600, 350), Lease(2**63 - 1, MAX_TTL_S)]
        records = {record_key(lease.id): encode_record(lease) for lease in leases}
        self.assertEqual({len(key) for key in records}, {8})
        self.assertEqual(record_key(7), b"\0\0\0\0\0\0\0\x07")
        loaded = [(lease.id, lease.ttl_s, lease.remaining_ttl_s) for lease in load_leases(records)]
        self.assertEqual(loaded, [(7, 60, 0), (-5, 600, 350), (2**63 - 1, MAX_TTL_S, 0)])

    def test_keys_find_their_leases_again(self) -> None:
        """After a start every key hangs on the lease that its pair names, whether its value is in memory or not."""
        lessor = Lessor(1, [Lease(7, 60), Lease(-5, 60)])
        lessor.reattach(
            [
                (b"a", KeyValue(key=b"a", lease=7).SerializeToString()),
                (b"b", Evicted(0, 2, 2, 1, 7, 1000)),
                (b"c", KeyValue(key=b"c", lease=-5).SerializeToString()),
                (b"d", KeyValue(key=b"d").SerializeToString()),
                (b"e", KeyValue(key=b"e", lease=99).SerializeToString()),
            ]
        )
        self.assertEqual((lessor.keys(7), lessor.keys(-5)), ({b"a", b"b"}, {b"c"}))


class DeadlinesTests(SynchronousTestCase):
    """When leases end."""

    def setUp(self) -> None:
        self.deadlines = Deadlines()

    def test_a_lease_ends_at_its_time_and_not_before(self) -> None:
        """A lease is named once its time has come, to the last moment not before."""
        self.deadlines.set(7, 5.0)
        self.assertEqual(self.deadlines.ended(4.999, 10), [])
        self.assertEqual(self.deadlines.ended(5.0, 10), [7])

    def test_a_renewed_lease_ends_later(self) -> None:
        """What was renewed is passed over until its new end."""
        self.deadlines.set(7, 5.0)
        self.deadlines.set(7, 9.0)
        self.assertEqual(self.deadlines.ended(8.9, 10), [])
        self.assertEqual(self.deadlines.ended(9.0, 10), [7])

    def test_an_id_that_is_granted_again_may_end_sooner(self) -> None:
        """A new lease with the id of one that was revoked early ends at its own time, once."""
        self.deadlines.set(7, 100.0)
        self.deadlines.forget(7)
        self.deadlines.set(7, 5.0)
        self.assertEqual(self.deadlines.ended(5.0, 10), [7])
        self.deadlines.forget(7)
        self.assertEqual(self.deadlines.ended(200.0, 10), [])

    def test_what_is_not_revoked_is_named_again(self) -> None:
        """As long as its revocation does not come, a lease is named again every few seconds, not every time."""
        self.deadlines.set(7, 5.0)
        self.assertEqual(self.deadlines.ended(5.0, 10), [7])
        self.assertEqual(self.deadlines.ended(5.0 + RETRY_S - 0.1, 10), [])
        self.assertEqual(self.deadlines.ended(5.0 + RETRY_S, 10), [7])

    def test_no_more_than_the_limit_at_once_the_oldest_first(self) -> None:
        """Of many leases that end together some wait for the next look."""
        for lease_id in range(1, 8):
            self.deadlines.set(lease_id, 10.0 - lease_id)
        self.assertEqual(self.deadlines.ended(20.0, 3), [7, 6, 5])
        self.assertEqual(self.deadlines.ended(20.0, 3), [4, 3, 2])
        self.assertEqual(self.deadlines.ended(20.0, 3), [1])

    def test_all_are_listed_by_their_end(self) -> None:
        """The first to end comes first, renewals counted."""
        for lease_id, end_s in ((1, 30.0), (2, 10.0), (3, 20.0), (2, 40.0)):
            self.deadlines.set(lease_id, end_s)
        self.assertEqual(self.deadlines.by_end(), [3, 1, 2])
        self.assertEqual(self.deadlines.remaining_s(2, 15.0), 25.0)
        self.deadlines.clear()
        self.assertEqual(self.deadlines.by_end(), [])
        self.assertEqual(self.deadlines.ended(100.0, 10), [])

    def test_memory_stays_with_the_living(self) -> None:
        """Leases that are granted for long and revoked at once leave nothing behind."""
        for _ in range(20_000):
            self.deadlines.set(7, 9e9)
            self.deadlines.forget(7)
        self.assertLess(len(self.deadlines._heap), 2_000)
        self.deadlines.set(7, 9e9)
        for number in range(20_000):
            self.deadlines.set(7, 9e9 + number)
        self.assertLess(len(self.deadlines._heap), 2_000)

    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("set"), st.sampled_from(_IDS), st.integers(0, 20)),
                st.tuples(st.just("forget"), st.sampled_from(_IDS), st.just(0)),
                st.tuples(st.just("look"), st.integers(1, 3), st.integers(0, 5)),
            )
        )
    )
    def test_as_a_dictionary_would_have_it(self, steps: list[tuple[str, int, int]]) -> None:
        """Whatever is set, renewed and forgotten: at each look exactly the leases that have ended are named."""
        deadlines, ends_s = Deadlines(), dict[int, float]()
        named_s = dict[int, float]()  # when a lease was named last
        now_s = 0.0
        for step, first, second in steps:
            if step == "set" and ends_s.get(first, now_s + 1) > now_s:  # what has ended is not renewed
                end_s = max(ends_s.get(first, 0.0), now_s + second)  # nor is an end ever moved forward
                ends_s[first] = end_s
                deadlines.set(first, end_s)
            elif step == "forget":
                ends_s.pop(first, None)
                named_s.pop(first, None)
                deadlines.forget(first)
            elif step == "look":
                now_s += second
                due = {
                    each
                    for each, end_s in ends_s.items()
                    if end_s <= now_s and named_s.get(each, -RETRY_S) + RETRY_S <= now_s
                }
                found = deadlines.ended(now_s, first)
                self.assertEqual(len(found), min(first, len(due)))
                self.assertLessEqual(set(found), due)
                named_s.update(dict.fromkeys(found, now_s))
