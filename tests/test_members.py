"""Members: ids as etcd computes them, records as etcd writes them, and additions through the log."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.errors import (
    MemberExistsError,
    MemberNotFoundError,
    NotEnoughStartedError,
    NotLearnerError,
    PeerURLExistsError,
    TooManyLearnersError,
)
from twistedkv.members import MemberInfo, Membership, bootstrap_changes, cluster_id, member_id, promotion
from twistedkv.pb.raft_pb2 import (
    ConfChange,
    ConfChangeAddLearnerNode,
    ConfChangeAddNode,
    ConfChangeRemoveNode,
    ConfChangeUpdateNode,
)
from twistedkv.raft.messages import ConfState

A = MemberInfo(10, ("http://a:2380",), "a", ("http://a:2379",))
B = MemberInfo(2, ("http://b:2380", "http://b:2381"))
LEARNER = MemberInfo(5, ("http://l:2380",), is_learner=True)


def change(member: MemberInfo, kind: int = ConfChangeAddNode, **fields: object) -> ConfChange:
    """A change of membership about ``member``."""
    return ConfChange(**{"type": kind, "node_id": member.id, "context": member.to_json(), **fields})  # type: ignore[arg-type]


def applied(membership: Membership, each: ConfChange) -> MemberInfo | None:
    """Carry out a change that fits."""
    membership.check(each)
    return membership.apply(each)


class IdTests(SynchronousTestCase):
    """Ids; the figures are those that real etcd 3.5.1 gave itself."""

    def test_etcds_own_ids(self) -> None:
        """A member started with etcd's default options has the ids that etcd is known by everywhere."""
        member = member_id(["http://localhost:2380"], "etcd-cluster")
        self.assertEqual(f"{member:x}", "8e9e05c52164694d")
        self.assertEqual(f"{cluster_id([member]):x}", "cdf818194e3a8c32")

    def test_order_does_not_matter(self) -> None:
        """The ids depend on which URLs and members there are, not on their order."""
        self.assertEqual(member_id(["http://a:1", "http://b:1"], "t"), member_id(["http://b:1", "http://a:1"], "t"))
        self.assertEqual(cluster_id([1, 2]), cluster_id([2, 1]))
        self.assertNotEqual(cluster_id([1, 2]), cluster_id([1, 3]))
        self.assertNotEqual(member_id(["http://a:1"], "t"), member_id(["http://a:1"], "u"))


class RecordTests(SynchronousTestCase):
    """The JSON form."""

    def test_empty_fields_are_left_out(self) -> None:
        """A member that has not started is written as etcd writes it."""
        self.assertEqual(B.to_json(), b'{"id":2,"peerURLs":["http://b:2380","http://b:2381"]}')
        self.assertEqual(LEARNER.to_json(), b'{"id":5,"peerURLs":["http://l:2380"],"isLearner":true}')
        self.assertEqual(
            A.to_json(),
            b'{"id":10,"peerURLs":["http://a:2380"],"name":"a","clientURLs":["http://a:2379"]}',
        )

    @given(
        st.builds(
            MemberInfo,
            st.integers(0, (1 << 64) - 1),
            st.lists(st.text()).map(tuple),
            st.text(),
            st.lists(st.text()).map(tuple),
            st.booleans(),
        )
    )
    def test_read_back(self, member: MemberInfo) -> None:
        """Whatever is written is read back equal."""
        self.assertEqual(MemberInfo.from_json(member.to_json()), member)

    def test_gos_null_is_empty(self) -> None:
        """Go writes a missing list as null."""
        self.assertEqual(MemberInfo.from_json(b'{"id":1,"peerURLs":null}'), MemberInfo(1, ()))

    def test_broken_records_are_refused(self) -> None:
        """What is no member record is refused by one kind of error."""
        for broken in (
            b"",
            b"\xff",
            b"[]",
            b"{}",
            b'{"id":null}',
            b'{"id":"x"}',
            b'{"id":1,"peerURLs":7}',
            b'{"id":Infinity}',
            b'{"id":1,"peerURLs":[7]}',
            b'{"id":1,"peerURLs":"http://a:2380"}',
            b'{"id":1,"clientURLs":{}, "name":["a"]}',
            b'{"id":1,"name":null}',
            b"[" * 100_000,
        ):
            self.assertRaises(ValueError, MemberInfo.from_json, broken)


class MembershipTests(SynchronousTestCase):
    """The members as of the applied index."""

    def test_records_rebuild_it(self) -> None:
        """A member that starts again finds the members that were recorded, listed by ascending id."""
        membership = Membership.from_records({b"a": A.to_json(), b"2": B.to_json(), b"5": LEARNER.to_json()})
        self.assertEqual(membership.listed(), [B, LEARNER, A])
        self.assertEqual(membership.conf_state(), ConfState((2, 10), (5,)))

    def test_the_members_of_another_state(self) -> None:
        """They take the place of ours, and so do those who were removed."""
        membership = Membership({10: A}, [99])
        membership.restore(Membership({2: B, 5: LEARNER}, [98, 99, 10]))
        self.assertEqual(membership.listed(), [B, LEARNER])
        self.assertRaises(MemberNotFoundError, membership.check, change(A))

    def test_members_come_and_go(self) -> None:
        """Voters and learners come in through the log, move, are promoted and go for good."""
        membership = Membership()
        self.assertEqual(applied(membership, change(A)), A)
        self.assertEqual(applied(membership, change(LEARNER, ConfChangeAddLearnerNode)), LEARNER)
        self.assertEqual(membership.conf_state(), ConfState((10,), (5,)))
        promote = change(LEARNER, context=promotion(5))
        self.assertEqual(applied(membership, promote), replace(LEARNER, is_learner=False))
        self.assertEqual(membership.conf_state(), ConfState((5, 10), ()))
        moved = MemberInfo(10, ("http://elsewhere:2380",))
        membership.set_attributes(10, "a", ["http://a:2379"])
        self.assertEqual(
            applied(membership, change(moved, ConfChangeUpdateNode)),
            replace(moved, name="a", client_urls=("http://a:2379",)),
        )
        self.assertIsNone(applied(membership, change(A, ConfChangeRemoveNode)))
        self.assertEqual((membership.conf_state(), membership.removed), (ConfState((5,), ()), {10}))

    def test_changes_that_do_not_fit_are_refused(self) -> None:
        """Each refusal has etcd's error, and changes nothing."""
        other = MemberInfo(11, ("http://other:2380",))
        cases: list[tuple[type[Exception], ConfChange]] = [
            (MemberExistsError, change(A)),
            (PeerURLExistsError, change(MemberInfo(11, A.peer_urls))),
            (TooManyLearnersError, change(other, ConfChangeAddLearnerNode)),
            (MemberNotFoundError, change(other, ConfChangeRemoveNode)),
            (MemberNotFoundError, change(other, ConfChangeUpdateNode)),
            (PeerURLExistsError, change(MemberInfo(10, LEARNER.peer_urls), ConfChangeUpdateNode)),
            (MemberNotFoundError, change(other, context=promotion(11))),
            (NotLearnerError, change(A, context=promotion(10))),
            (MemberNotFoundError, change(MemberInfo(99, ("http://back:2380",)))),
            (ValueError, change(other, node_id=12)),
            (ValueError, change(other, context=b"{")),
            (ValueError, change(other, context=b"[]")),
            (ValueError, change(other, context=b'{"id":11,"peerURLs":null}')),
        ]
        membership = Membership({10: A, 5: LEARNER}, removed=[99])
        for error, refused in cases:
            self.assertRaises(error, membership.check, refused)
        self.assertEqual(membership.listed(), [LEARNER, A])

    def test_removed_members_are_remembered(self) -> None:
        """A member that starts again knows who was removed."""
        membership = Membership.from_records({b"a": A.to_json()}, [b"63"])
        self.assertEqual(membership.removed, {0x63})

    def test_quorum_of_started_members_is_kept(self) -> None:
        """A change that would leave no quorum of started members is not proposed, as etcd checks strictly."""
        a, b, c = (MemberInfo(each, (f"http://{each}:2380",), "started") for each in (1, 2, 3))
        new = MemberInfo(4, ("http://4:2380",))
        Membership({1: a}).check_add_voter()  # a second member may always come
        Membership({1: a, 2: b, 3: c}).check_add_voter()
        Membership({1: a, 2: b, 3: c, 5: LEARNER}).check_promote(5)
        self.assertRaises(NotEnoughStartedError, Membership({1: a, 4: new}).check_add_voter)
        self.assertRaises(NotEnoughStartedError, Membership({1: a, 4: new, 5: LEARNER, 6: new}).check_promote, 5)
        Membership({1: a, 2: b, 3: c}).check_remove(3)
        Membership({1: a, 4: new}).check_remove(4)
        Membership({1: a, 5: LEARNER}).check_remove(5)
        Membership({1: a}).check_remove(7)
        self.assertRaises(NotEnoughStartedError, Membership({1: a}).check_remove, 1)
        self.assertRaises(NotEnoughStartedError, Membership({1: a, 5: LEARNER}).check_remove, 1)
        self.assertRaises(NotEnoughStartedError, Membership({1: a, 4: new}).check_remove, 1)

    def test_attributes_of_a_started_member(self) -> None:
        """A started member tells its name and client URLs; one that is not known is ignored."""
        membership = Membership({2: B})
        started = membership.set_attributes(2, "b", ["http://b:2379"])
        self.assertEqual(started, MemberInfo(2, B.peer_urls, "b", ("http://b:2379",)))
        self.assertEqual(membership.listed(), [started])
        self.assertIsNone(membership.set_attributes(3, "c", []))

    def test_first_entries_of_a_log(self) -> None:
        """A new cluster's log begins with its members by ascending id, and replaying it gives those members."""
        membership = Membership()
        entries = [ConfChange.FromString(entry) for entry in bootstrap_changes([A, B])]
        self.assertEqual([entry.node_id for entry in entries], [2, 10])
        for entry in entries:
            applied(membership, entry)
        self.assertEqual(membership.listed(), [B, A])
