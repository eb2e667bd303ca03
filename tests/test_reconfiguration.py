"""Changes of the members: what the strict check refuses, what goes into the log, promotions by way of the leader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.changingmember import ME, NOW_S, ChangingMember, learner, started, waiting
from twistedkv.errors import (
    InvalidMemberURLsError,
    KVError,
    LearnerNotReadyError,
    MemberNotFoundError,
    NoLeaderError,
    NotEnoughStartedError,
    NotLeaderError,
    NotLearnerError,
    PeerURLExistsError,
    RequestTimeoutError,
    TooManyLearnersError,
    UnhealthyError,
)
from twistedkv.members import MemberInfo
from twistedkv.pb.raft_pb2 import (
    ConfChangeAddLearnerNode,
    ConfChangeAddNode,
    ConfChangeRemoveNode,
    ConfChangeUpdateNode,
)
from twistedkv.reconfiguration import RETRY_S, Reconfiguration, members_json, parse_peer_urls

LONG, EDGE, SHORT = NOW_S - 60, NOW_S - 5, NOW_S - 1  # since when a member is heard of; 5 s must have passed
LEARNER, UNKNOWN = 9, 77
NEW_URL = "http://new:2380"

Since = Mapping[int, float]
NOBODY: Since = {}  # is connected
Refusal = type[KVError] | None


class ReconfigurationCase(SynchronousTestCase):
    """One member, and what it makes of requests."""

    def make(self, members: Sequence[MemberInfo], since: Since = NOBODY, strict: bool = True) -> Reconfiguration:
        """The members that there are, and since when they are connected."""
        self.member = ChangingMember(members, strict)
        self.member.peers.since_s.update(since)
        self.wall_s = 1795622982.9
        return Reconfiguration(self.member, lambda: self.wall_s)

    def outcome(self, steps: Any) -> Any:
        """What a coroutine returns, or the class of the error it raises."""
        found: list[Any] = []
        Deferred.fromCoroutine(steps).addCallbacks(found.append, lambda failure: found.append(failure.type))
        self.assertEqual(len(found), 1, "it is not over")
        return found[0]

    def ids(self, members: Sequence[MemberInfo]) -> list[int]:
        return [each.id for each in members]


class StrictTests(ReconfigurationCase):
    """Changes that could leave the cluster without a quorum. The rules were tried on etcd 3.5.1."""

    ADDITIONS: tuple[tuple[str, Sequence[MemberInfo], Since, bool, Refusal], ...] = (
        ("a lone member may have a second one", [started(1)], {}, False, None),
        ("or a learner", [started(1)], {}, True, None),
        ("two of three would be needed, one runs", [started(1), waiting(2)], {2: LONG}, False, NotEnoughStartedError),
        ("no learner while a voter is not there", [started(1), waiting(2)], {}, True, UnhealthyError),
        ("all are there", [started(1), started(2), started(3)], {2: LONG, 3: LONG}, False, None),
        ("one is down", [started(1), started(2), started(3)], {2: LONG}, False, UnhealthyError),
        ("one came just now", [started(1), started(2), started(3)], {2: LONG, 3: SHORT}, False, UnhealthyError),
        ("five seconds are not more than five", [started(1), started(2)], {2: EDGE}, True, UnhealthyError),
        ("a learner that is down does not count", [started(1), started(2), learner(3)], {2: LONG}, False, None),
        (
            "three of four would be needed, two run",
            [started(1), started(2), waiting(3)],
            {2: LONG, 3: LONG},
            False,
            NotEnoughStartedError,
        ),
    )

    REMOVALS: tuple[tuple[str, Sequence[MemberInfo], Since, int, Refusal], ...] = (
        ("the last member stays", [started(1)], {}, 1, NotEnoughStartedError),
        ("the last voter stays", [started(1), learner(LEARNER)], {}, 1, NotEnoughStartedError),
        ("a learner may go", [started(1), learner(LEARNER)], {}, LEARNER, None),
        ("one that never started may go", [started(1), waiting(2)], {}, 2, None),
        ("it cannot be left alone", [started(1), waiting(2)], {}, 1, NotEnoughStartedError),
        ("one of two may go", [started(1), started(2)], {2: LONG}, 2, None),
        ("not if it came just now", [started(1), started(2)], {2: SHORT}, 2, UnhealthyError),
        ("one of three may go", [started(1), started(2), started(3)], {2: LONG, 3: LONG}, 3, None),
        ("this one, too", [started(1), started(2), started(3)], {2: LONG, 3: LONG}, 1, None),
        ("one that is down may go", [started(1), started(2), started(3)], {2: LONG}, 3, None),
        ("one that is needed may not", [started(1), started(2), started(3)], {2: LONG}, 2, UnhealthyError),
        ("nor may this one", [started(1), started(2), started(3)], {2: LONG}, 1, UnhealthyError),
    )

    PROMOTIONS: tuple[tuple[str, Sequence[MemberInfo], Refusal], ...] = (
        ("two of two", [started(1), learner(LEARNER)], None),
        ("two of three", [started(1), waiting(2), learner(LEARNER)], None),
        ("two of four", [started(1), waiting(2), waiting(3), learner(LEARNER)], NotEnoughStartedError),
    )

    def test_additions(self) -> None:
        """A member comes in if the larger quorum would be there, and all voters are."""
        for strict in (True, False):
            for why, members, since, is_learner, refusal in self.ADDITIONS:
                changes = self.make(members, since, strict)
                outcome = self.outcome(changes.add([NEW_URL], is_learner))
                if strict and refusal is not None:
                    self.assertEqual((outcome, self.member.changes), (refusal, []), why)
                else:
                    self.assertEqual(len(outcome.members), len(members) + 1, why)

    def test_removals(self) -> None:
        """A voter may go if the others have a quorum that runs and is there."""
        for strict in (True, False):
            for why, members, since, target, refusal in self.REMOVALS:
                outcome = self.outcome(self.make(members, since, strict).remove(target))
                if strict and refusal is not None:
                    self.assertEqual((outcome, self.member.changes), (refusal, []), why)
                else:
                    self.assertEqual(self.ids(outcome), [each.id for each in members if each.id != target], why)

    def test_promotions(self) -> None:
        """A learner gets a vote if the larger quorum would be there; connections do not count."""
        for strict in (True, False):
            for why, members, refusal in self.PROMOTIONS:
                outcome = self.outcome(self.make(members, {}, strict).promote_here(LEARNER))
                if strict and refusal is not None:
                    self.assertEqual((outcome, self.member.changes), (refusal, []), why)
                else:
                    self.assertFalse(any(each.is_learner for each in outcome), why)


class ChangeTests(ReconfigurationCase):
    """What goes into the log, and what the log says to it."""

    def test_a_new_member(self) -> None:
        """It has the id that etcd 3.5.1 gave a member with these URLs at this second."""
        changes = self.make([started(ME)])
        added = self.outcome(changes.add(["http://127.0.0.1:5", "http://127.0.0.1:4"], True))
        new = MemberInfo(2125340783137297509, ("http://127.0.0.1:4", "http://127.0.0.1:5"), is_learner=True)
        self.assertEqual(added, (new, [started(ME), new]))
        (change,) = self.member.changes
        self.assertEqual(
            (change.type, change.node_id, change.context), (ConfChangeAddLearnerNode, new.id, new.to_json())
        )
        self.outcome(changes.add([NEW_URL], False))
        self.assertEqual(self.member.changes[-1].type, ConfChangeAddNode)

    def test_removal_and_update(self) -> None:
        """A removal says nothing but the id; an update has the URLs in the order given, and keeps the name."""
        changes = self.make([started(ME), learner(LEARNER)])
        moved = self.outcome(changes.update(ME, ["http://b:1", "http://a:1"]))
        self.assertEqual((moved[0].peer_urls, moved[0].name), (("http://b:1", "http://a:1"), "m1"))
        self.assertEqual(self.ids(self.outcome(changes.remove(LEARNER))), [ME])
        update, removal = self.member.changes
        self.assertEqual((update.type, update.node_id), (ConfChangeUpdateNode, ME))
        self.assertEqual(update.context, b'{"id":1,"peerURLs":["http://b:1","http://a:1"]}')
        self.assertEqual((removal.type, removal.node_id, removal.context), (ConfChangeRemoveNode, LEARNER, b""))

    def test_a_learner_that_moves(self) -> None:
        """It stays one in the eyes of all: etcd's members believe what the change says, and nothing is a voter."""
        changes = self.make([started(ME), learner(LEARNER)])
        self.assertTrue(self.outcome(changes.update(LEARNER, [NEW_URL]))[1].is_learner)
        self.assertEqual(self.member.changes[0].context, b'{"id":9,"peerURLs":["http://new:2380"],"isLearner":true}')

    def test_refusals_of_the_log(self) -> None:
        """What does not fit the members when its turn comes is refused in etcd's words."""
        changes = self.make([started(ME), learner(LEARNER)])
        mine = started(ME).peer_urls
        self.assertEqual(self.outcome(changes.add(mine, False)), PeerURLExistsError)
        self.assertEqual(self.outcome(changes.add([NEW_URL], True)), TooManyLearnersError)
        self.assertEqual(self.outcome(changes.update(LEARNER, mine)), PeerURLExistsError)
        self.assertEqual(self.outcome(changes.update(UNKNOWN, [NEW_URL])), MemberNotFoundError)
        self.assertEqual(self.outcome(changes.remove(UNKNOWN)), MemberNotFoundError)
        self.outcome(changes.remove(LEARNER))
        for gone in (changes.remove(LEARNER), changes.update(LEARNER, [NEW_URL]), changes.promote_here(LEARNER)):
            self.assertEqual(self.outcome(gone), MemberNotFoundError)

    def test_urls(self) -> None:
        """etcd's form of URLs; what no member can be reached by is refused before it comes into the log."""
        self.assertEqual(parse_peer_urls([" HTTP://Host:1 ", "https://[::1]:2"]), ["http://Host:1", "https://[::1]:2"])
        changes = self.make([started(ME)])
        for bad in ([], [""], ["x"], ["http://a"], ["http://a:1/"], ["ftp://a:1"], ["http://a:b"], ["http://a b:1"],
                    [NEW_URL, "http://a:1/p"], ["unix://a:1"], ["http://:1"], ["http://a:99999"]):  # fmt: skip
            self.assertEqual(self.outcome(changes.add(bad, False)), InvalidMemberURLsError, bad)
            self.assertEqual(self.outcome(changes.update(ME, bad)), InvalidMemberURLsError, bad)
        self.assertEqual(self.member.changes, [])

    def test_nobody_waits_any_more(self) -> None:
        """A change is not taken back because its client is gone, and the member may answer later."""
        changes = self.make([started(ME)])
        self.member.holding = True
        added = Deferred.fromCoroutine(changes.add([NEW_URL], False))
        self.assertNoResult(added)
        added.cancel()
        self.failureResultOf(added, CancelledError)
        self.member.apply()
        self.assertEqual(len(self.member.membership.members), 2)
        self.member.holding = True
        refused = Deferred.fromCoroutine(changes.update(UNKNOWN, ["http://other:2380"]))
        refused.cancel()
        self.failureResultOf(refused, CancelledError)
        self.member.apply()  # and the refusal is nobody's


class PromotionTests(ReconfigurationCase):
    """On the leader: who is ready, and what is counted."""

    def test_only_who_has_the_log(self) -> None:
        """Nine tenths of the leader's log are enough; where the leader has the log is its own business."""
        for match, refusal in ((89, LearnerNotReadyError), (90, None), (100, None)):
            changes = self.make([started(ME), learner(LEARNER)], strict=False)
            self.member.matches[LEARNER] = match
            outcome = self.outcome(changes.promote(LEARNER, lambda: True))
            self.assertEqual(outcome if refusal else None, refusal, match)
            self.assertEqual(changes.promoted, refusal is None)

    def test_failures_are_counted_by_their_reason(self) -> None:
        """The reasons are those of etcd's metric."""
        changes = self.make([started(ME), learner(LEARNER)])
        self.member.matches[LEARNER] = 5
        self.member.membership.removed.add(66)
        for member, error in (
            (LEARNER, LearnerNotReadyError),
            (ME, NotLearnerError),
            (UNKNOWN, MemberNotFoundError),
            (66, MemberNotFoundError),
            (66, MemberNotFoundError),
        ):
            self.assertEqual(self.outcome(changes.promote(member, lambda: True)), error)
        reasons = {
            "etcdserver: can only promote a learner member which is in sync with leader": 1,
            "membership: can only promote a learner member": 1,
            "membership: ID not found": 1,
            "membership: ID removed": 2,
        }
        self.assertEqual((changes.promoted, changes.not_promoted), (0, reasons))


class ForwardTests(ReconfigurationCase):
    """Elsewhere: the leader is asked over its peer port."""

    LEADER = 2

    def setUp(self) -> None:
        self.changes = self.make([started(ME), started(self.LEADER), learner(LEARNER)])
        self.member.leader = self.LEADER
        self.wanted = True

    def promote(self) -> Deferred[Sequence[MemberInfo]]:
        return Deferred.fromCoroutine(self.changes.promote(LEARNER, lambda: self.wanted))

    def tearDown(self) -> None:
        self.assertEqual((self.member.reactor.getDelayedCalls(), self.member.leader_changes), ([], []))

    def test_the_leader_answers(self) -> None:
        """Its members are the answer, whatever is applied here already; the leader is who counts it."""
        promoted = self.promote()
        (asked,) = self.member.peers.take()
        self.assertEqual(
            (asked.member_id, asked.method, asked.path), (self.LEADER, "POST", f"/members/promote/{LEARNER}")
        )
        theirs = [started(ME), started(self.LEADER), started(LEARNER)]
        asked.answer(200, members_json(theirs))
        self.assertEqual(self.successResultOf(promoted), theirs)
        self.assertEqual((self.changes.promoted, self.member.changes), (0, []))

    def test_the_leader_refuses(self) -> None:
        """Some refusals are for good, whichever member of etcd's made the text."""
        for status, text, error in (
            (404, b"membership: ID not found\n", MemberNotFoundError),
            (404, b"member 9 not found in cluster\n", MemberNotFoundError),
            (412, b"membership: can only promote a learner member\n", NotLearnerError),
            (412, LearnerNotReadyError.text.encode() + b"\n", LearnerNotReadyError),
        ):
            promoted = self.promote()
            self.member.peers.take()[0].answer(status, text)
            self.failureResultOf(promoted, error)

    def test_others_are_tried_again(self) -> None:
        """What says nothing about the learner is tried again after a pause, at whoever leads then."""
        promoted = self.promote()
        for status, text in (
            (500, b'{"message":"Internal Server Error"}'),
            (412, b"?"),
            (408, b""),
            (200, b"?"),
            (200, b"[]"),
        ):
            self.member.peers.take()[0].answer(status, text)
            self.assertEqual(self.member.peers.take(), [])
            self.member.reactor.advance(RETRY_S)
        self.member.peers.take()[0].reply.errback(ConnectionError("cut"))
        self.member.peers.missing.add(3)
        self.member.leader = 3
        self.member.reactor.advance(RETRY_S)  # it is no peer of ours
        self.member.leader = self.LEADER
        self.member.reactor.advance(RETRY_S)
        self.member.peers.take()[0].answer(404)
        self.failureResultOf(promoted, MemberNotFoundError)

    def test_this_member_comes_to_lead(self) -> None:
        """Then it needs to ask nobody."""
        promoted = self.promote()
        self.member.peers.take()[0].answer(500)
        self.member.leader = ME
        self.member.reactor.advance(RETRY_S)
        self.assertFalse(any(each.is_learner for each in self.successResultOf(promoted)))
        self.assertEqual(self.changes.promoted, 1)

    def test_it_leads_no_more_while_it_looks(self) -> None:
        """A leader without progress of its own, which is one no more, is not one; the next is asked."""
        promoted = self.promote()
        self.member.peers.take()[0].answer(500)
        self.member.leader = ME
        self.member.matches.clear()
        self.member.reactor.advance(RETRY_S)
        self.member.leader = self.LEADER
        self.member.reactor.advance(RETRY_S)
        self.member.peers.take()[0].answer(404)
        self.failureResultOf(promoted, MemberNotFoundError)

    def test_no_leader(self) -> None:
        """One is waited for, as long as a request may take."""
        self.member.leader = 0
        for late in (False, True):
            promoted = self.promote()
            self.member.reactor.advance(self.member.timeout_s - 1)
            self.assertNoResult(promoted)
            if late:
                self.member.reactor.advance(1)
                self.failureResultOf(promoted, NoLeaderError)
            else:
                self.member.lead_by(self.LEADER)
                self.member.peers.take()[0].answer(404)
                self.failureResultOf(promoted, MemberNotFoundError)
                self.member.leader = 0

    def test_no_answer(self) -> None:
        """All tries together may not take longer than a request may."""
        promoted = self.promote()
        left_s = self.member.timeout_s
        for _ in range(2):
            (asked,) = self.member.peers.take()
            self.assertAlmostEqual(asked.timeout_s, left_s)
            self.member.reactor.advance(3.4)
            asked.reply.errback(TimeoutError("no answer"))
            self.member.reactor.advance(RETRY_S)
            left_s -= 3.4 + RETRY_S
        self.failureResultOf(promoted, RequestTimeoutError)

    def test_the_client_leaves(self) -> None:
        """Wherever it stands then, nothing is left to come."""
        self.wanted = False
        asking = self.promote()
        self.member.peers.take()
        asking.cancel()
        self.failureResultOf(asking, CancelledError)
        self.wanted = True
        pausing = self.promote()
        self.member.peers.take()[0].answer(500)
        pausing.cancel()
        self.failureResultOf(pausing, CancelledError)
        self.member.leader = 0
        leaderless = self.promote()
        leaderless.cancel()
        self.failureResultOf(leaderless, CancelledError)

    def test_only_the_leader_promotes(self) -> None:
        """A question that another member sent on is not sent on again."""
        self.assertEqual(self.outcome(self.changes.promote_here(LEARNER)), NotLeaderError)
        self.assertEqual(self.changes.not_promoted, {})
