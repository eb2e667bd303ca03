"""Elections, hand-overs, changes of members: who may lead, by whose votes, and when they count (Raft §5.2, §6)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.raft.nodes import (
    acknowledge,
    candidate,
    change,
    follower,
    kinds,
    leader,
    make_node,
    sent_in,
    settle,
    take,
)
from twistedkv.pb import raft_pb2
from twistedkv.raft.confchange import encode
from twistedkv.raft.messages import (
    ConfState,
    Entry,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    Role,
    Snapshot,
    SnapshotMeta,
)

LAST_TERM = (1 << 64) - 1


def vote(sender: int, term: int = 1, *, reject: bool = False) -> Message:
    return Message(MessageType.VOTE_RESPONSE, 1, sender, term=term, reject=reject)


def pre_vote(sender: int, term: int, *, reject: bool = False) -> Message:
    return Message(MessageType.PRE_VOTE_RESPONSE, 1, sender, term=term, reject=reject)


class DurableVoteTests(SynchronousTestCase):
    def test_vote_for_itself_counts_when_it_is_durable(self) -> None:
        """Raft §5.2: a campaign that began while the disk was at work is not won by the end of that work."""
        node = make_node(1, 2, 3, pre_vote=False)
        node.step(Message(MessageType.APPEND, 1, 3, term=1, entries=[Entry(1, 1, b"")]))
        before = node.ready()
        node.campaign()
        node.advance(before)
        node.step(vote(2, 2))
        self.assertIs(node.role, Role.CANDIDATE)  # else it could vote for another one in this term after a crash
        ready = node.ready()
        self.assertEqual((ready.hard_state, ready.must_sync), (HardState(2, 1, 0), True))
        node.advance(ready)
        self.assertIs(node.role, Role.LEADER)

    def test_single_voter_waits_for_its_own_vote(self) -> None:
        """Raft §5.1: alone, too, a leader's term is durable before it leads."""
        node = make_node(1, pre_vote=False)
        node.step(Message(MessageType.VOTE, 1, 9, term=4))  # any work for the disk
        before = node.ready()
        node.campaign()
        node.advance(before)
        self.assertEqual((node.role, node.term), (Role.CANDIDATE, 5))
        settle(node)
        self.assertIs(node.role, Role.LEADER)

    def test_votes_are_asked_for_with_a_durable_log(self) -> None:
        """Raft, figure 2: a candidate's term, and the log it boasts of, survive a crash before anybody hears of it."""
        node = make_node(1, 2, 3, pre_vote=False)
        node.step(Message(MessageType.APPEND, 1, 3, term=1, entries=[Entry(1, 1, b"")]))
        node.campaign()
        ready = node.ready()
        self.assertEqual((len(ready.entries), ready.messages), (1, []))
        asked = [(message.to, message.index) for message in ready.responses if message.type is MessageType.VOTE]
        self.assertEqual(asked, [(2, 1), (3, 1)])
        node.campaign()
        self.assertEqual(node.take_unsynced(), ([], []))

    def test_pre_votes_promise_nothing_and_do_not_wait(self) -> None:
        """Raft thesis §9.6: whether an election could be won is asked at once."""
        node = make_node(1, 2, 3)
        node.campaign()
        ready = node.ready()
        self.assertEqual(kinds(ready.messages), [(MessageType.PRE_VOTE, 2), (MessageType.PRE_VOTE, 3)])


class CountingTests(SynchronousTestCase):
    def test_only_voters_are_counted(self) -> None:
        """Raft §6: learners and strangers elect nobody."""
        node = candidate(1, 2, 3, learners=(4, 5))
        for stranger in (4, 5, 6, 7):
            node.step(vote(stranger))
        self.assertIs(node.role, Role.CANDIDATE)
        node.step(vote(2))
        self.assertIs(node.role, Role.LEADER)

    def test_a_second_answer_changes_nothing(self) -> None:
        """Raft §5.2: one vote each, the first one that came."""
        node = candidate(1, 2, 3, 4, 5)
        for _ in range(3):
            node.step(vote(2))
            node.step(vote(3, reject=True))
        node.step(vote(3))
        self.assertIs(node.role, Role.CANDIDATE)
        node.step(vote(4))
        self.assertIs(node.role, Role.LEADER)

    def test_pre_vote_for_an_earlier_term_is_not_counted(self) -> None:
        """Raft thesis §9.6: a late answer to an earlier question says nothing about this one."""
        node = make_node(1, 2, 3)
        node.campaign()  # for term 1
        settle(node)
        node.step(Message(MessageType.HEARTBEAT, 1, 3, term=1))
        node.campaign()  # for term 2
        settle(node)
        node.step(pre_vote(2, 1))
        self.assertEqual((node.role, node.term), (Role.PRE_CANDIDATE, 1))
        node.step(pre_vote(2, 9))
        self.assertEqual((node.role, node.term), (Role.PRE_CANDIDATE, 1))
        node.step(pre_vote(2, 2))
        self.assertEqual((node.role, node.term), (Role.CANDIDATE, 2))

    def test_other_answers_elect_nobody(self) -> None:
        """etcd raft.go, stepCandidate: pre-votes do not count in an election, nor votes in asking for pre-votes."""
        node = candidate(1, 2, 3)
        node.step(pre_vote(2, 1))
        self.assertIs(node.role, Role.CANDIDATE)
        node = make_node(1, 2, 3)
        node.campaign()
        settle(node)
        node.step(vote(2, 0))
        self.assertIs(node.role, Role.PRE_CANDIDATE)

    def test_candidate_that_loses_its_vote_gives_up(self) -> None:
        """Raft §6: whoever is removed or demoted while it campaigns leads nobody, whatever answers come yet."""
        for kind in (raft_pb2.ConfChangeRemoveNode, raft_pb2.ConfChangeAddLearnerNode):
            for pre in (True, False):
                node = make_node(1, 2, 3, pre_vote=pre)
                node.campaign()
                settle(node)
                node.apply_conf_change(change(kind, 1))
                self.assertEqual((node.role, node.leader), (Role.FOLLOWER, 0))
                for peer in (2, 3):
                    node.step(pre_vote(peer, 1))
                    node.step(vote(peer, node.term))
                self.assertIs(node.role, Role.FOLLOWER)
                node.campaign()
                self.assertIs(node.role, Role.FOLLOWER)

    def test_learner_votes(self) -> None:
        """etcd raft.go, Step: a learner that was promoted, and does not know it yet, must be able to vote."""
        node = make_node(2, 3, learners=(1,))
        node.step(Message(MessageType.VOTE, 1, 3, term=1))
        (answer,) = sent_in(settle(node))
        self.assertEqual((answer.type, answer.to, answer.reject), (MessageType.VOTE_RESPONSE, 3, False))

    def test_change_that_is_not_applied_forbids_to_campaign(self) -> None:
        """etcd raft.go, hup: by the members as they were it could win without a majority of those that are."""
        node = make_node(1, 2, 3)
        entry = encode(change(raft_pb2.ConfChangeAddNode, 4))._replace(term=1, index=1)
        node.step(Message(MessageType.APPEND, 1, 2, term=1, entries=[entry], commit=1))
        self.assertTrue(node.change_is_pending)
        for _ in range(40):
            node.tick()
        self.assertIs(node.role, Role.FOLLOWER)
        settle(node)
        self.assertFalse(node.change_is_pending)
        node.campaign()
        self.assertIs(node.role, Role.PRE_CANDIDATE)

    def test_last_term_is_the_last(self) -> None:
        """A made-up term that leaves no room for another one ends no member by an overflow."""
        node = make_node(1, 2, 3)
        node.step(Message(MessageType.HEARTBEAT, 1, 2, term=LAST_TERM))
        for _ in range(40):
            node.tick()
        node.step(Message(MessageType.TIMEOUT_NOW, 1, 2, term=LAST_TERM))
        self.assertEqual((node.role, node.term), (Role.FOLLOWER, LAST_TERM))


class DisturbanceTests(SynchronousTestCase):
    def test_removed_member_deposes_nobody(self) -> None:
        """etcd raft/node.go, run: answers of members that are none any more are not looked at, whatever their term."""
        for kind in (
            MessageType.APPEND_RESPONSE,
            MessageType.HEARTBEAT_RESPONSE,
            MessageType.VOTE_RESPONSE,
            MessageType.PRE_VOTE_RESPONSE,
            MessageType.READ_INDEX_RESPONSE,
        ):
            node = leader(1, 2, 3)
            node.step(Message(kind, 1, 4, term=9, reject=True, entries=[Entry(0, 0, b"r")]))
            self.assertEqual((node.role, node.term), (Role.LEADER, 1), kind)
            node.step(Message(kind, 1, 3, term=9, reject=True, entries=[Entry(0, 0, b"r")]))
            self.assertEqual((node.role, node.term), (Role.FOLLOWER, 9), kind)

    def test_member_that_was_away_comes_back(self) -> None:
        """Raft thesis §9.6: a higher term that came of elections nobody won ends the leader's, once it is heard of."""
        node = follower(1, 2, 3)
        node.step(Message(MessageType.VOTE, 1, 3, term=5, context=b"CampaignTransfer"))
        settle(node)
        for kind in (MessageType.HEARTBEAT, MessageType.APPEND):
            node.step(Message(kind, 1, 2, term=1))
            (answer,) = sent_in(settle(node))
            self.assertEqual((answer.type, answer.to, answer.term), (MessageType.APPEND_RESPONSE, 2, 5))
        old = leader(1, 2, 3)
        old.step(Message(MessageType.APPEND_RESPONSE, 1, 3, term=5))
        self.assertEqual((old.role, old.term), (Role.FOLLOWER, 5))

    def test_two_leaders_in_one_term(self) -> None:
        """Raft §5.2, Election Safety: one of them is none; the log follows the one that was there first."""
        node = follower(1, 2, 3)
        node.step(Message(MessageType.APPEND, 1, 3, term=1, index=1, log_term=1, entries=[Entry(1, 2, b"other")]))
        node.step(Message(MessageType.HEARTBEAT, 1, 3, term=1, context=b"question"))
        self.assertEqual((sent_in(settle(node)), node.leader, node.log.last_index), ([], 2, 1))
        node.step(Message(MessageType.HEARTBEAT, 1, 3, term=2))
        self.assertEqual((node.leader, node.term), (3, 2))

    def test_check_quorum_counts_voters_that_answered(self) -> None:
        """Raft thesis §6.2: learners keep no leader in office; any answer of a voter does."""
        node = leader(1, 2, 3, learners=(4,))
        for _ in range(10):
            node.tick()
        for voters, role in (((3,), Role.LEADER), ((), Role.FOLLOWER)):
            for member in (*voters, 4):
                node.step(Message(MessageType.HEARTBEAT_RESPONSE, 1, member, term=1))
            for _ in range(10):
                node.tick()
            self.assertIs(node.role, role)


class TransferTests(SynchronousTestCase):
    def test_transfer_is_given_up_in_time(self) -> None:
        """Raft thesis §3.10: after an election timeout the leader takes proposals again."""
        node = leader(1, 2, 3)
        node.transfer_leader(3)
        for tick in range(10):
            self.assertEqual(node.transferee, 3, tick)
            self.assertRaises(ProposalDropped, node.propose, [b"a"])
            node.step(Message(MessageType.HEARTBEAT_RESPONSE, 1, 2, term=1))
            node.tick()
        self.assertEqual(node.transferee, 0)
        node.propose([b"a"])

    def test_transfer_to_the_leader_ends_another_one(self) -> None:
        """etcd raft.go, stepLeader: who is asked to go on leading does."""
        node = leader(1, 2, 3)
        node.transfer_leader(3)
        node.step(Message(MessageType.TRANSFER_LEADER, 1, 1, term=1))  # as a follower forwards it
        self.assertEqual(node.transferee, 0)
        node.transfer_leader(2)
        node.transfer_leader(1)
        self.assertEqual(node.transferee, 0)

    def test_transfer_to_one_that_can_not_lead(self) -> None:
        """Raft thesis §3.10: learners, strangers and those that were removed are handed nothing."""
        node = leader(1, 2, 3, learners=(4,))
        for target in (0, 4, 5):
            node.transfer_leader(target)
            self.assertEqual(node.transferee, 0)
        node.transfer_leader(3)
        node.transfer_leader(4)
        self.assertEqual(node.transferee, 3)
        node.apply_conf_change(change(raft_pb2.ConfChangeRemoveNode, 3))
        self.assertEqual(node.transferee, 0)

    def test_another_target_takes_the_place_of_the_first(self) -> None:
        """etcd raft.go, stepLeader: the last one that was asked for counts, with all the time there is."""
        node = leader(1, 2, 3)
        node.transfer_leader(3)
        for _ in range(6):
            node.tick()
        settle(node)
        node.transfer_leader(2)
        self.assertEqual(kinds(take(node).messages), [(MessageType.TIMEOUT_NOW, 2)])
        for _ in range(6):
            node.tick()
        self.assertEqual(node.transferee, 2)

    def test_only_the_leader_says_when(self) -> None:
        """Raft thesis §3.10: it is the leader that hands over, and nobody else in its name."""
        node = follower(1, 2, 3)
        node.step(Message(MessageType.TIMEOUT_NOW, 1, 3, term=1))
        self.assertEqual((node.role, node.term), (Role.FOLLOWER, 1))
        node.step(Message(MessageType.TIMEOUT_NOW, 1, 2, term=1))
        self.assertEqual((node.role, node.term), (Role.CANDIDATE, 2))
        self.assertEqual({m.context for m in sent_in(settle(node))}, {b"CampaignTransfer"})

    def test_removed_node_and_learner_do_not_take_over(self) -> None:
        """Raft §6: without a vote it can not be elected."""
        snapshot = Snapshot(SnapshotMeta(5, 1, ConfState((2, 3), (1,))))
        learner, waiting = make_node(2, 3, learners=(1,)), make_node(1, 2, 3)
        removed, waits_for_snapshot = make_node(2, 3), waiting
        waits_for_snapshot.step(Message(MessageType.SNAPSHOT, 1, 2, term=1, snapshot=snapshot))
        for node in (learner, removed, waits_for_snapshot):
            node.step(Message(MessageType.TIMEOUT_NOW, 1, 2, term=1))
            self.assertEqual((node.role, node.term), (Role.FOLLOWER, 1))

    def test_follower_forwards_in_its_own_term(self) -> None:
        """What is handed on for others bears no term of theirs, or a made-up one would depose the leader."""
        node = follower(1, 2, 3)
        node.step(Message(MessageType.PROPOSE, 1, 3, term=99, entries=[Entry(0, 0, b"p")]))
        node.step(Message(MessageType.READ_INDEX, 1, 3, term=99, entries=[Entry(0, 0, b"r")]))
        node.step(Message(MessageType.TRANSFER_LEADER, 1, 3, term=1))
        forwarded = [(m.type, m.to, m.sender, m.term) for m in sent_in(settle(node))]
        self.assertEqual(forwarded, [
            (MessageType.PROPOSE, 2, 3, 0), (MessageType.READ_INDEX, 2, 3, 0), (MessageType.TRANSFER_LEADER, 2, 3, 1),
        ])  # fmt: skip
        self.assertEqual(node.term, 1)


class RemovedLeaderTests(SynchronousTestCase):
    def test_removed_leader_leads_on_and_counts_no_more(self) -> None:
        """Raft thesis §4.2.2: it takes no proposals, and an entry commits by the others alone."""
        node = leader(1, 2, 3)
        node.propose_conf_change(change(raft_pb2.ConfChangeRemoveNode, 1))
        settle(node)
        acknowledge(node, 2, 2)
        node.propose([b"before it is applied"])
        settle(node)
        self.assertEqual((node.role, node.configuration.state), (Role.LEADER, ConfState((2, 3))))
        self.assertRaises(ProposalDropped, node.propose, [b"a"])
        acknowledge(node, 2, 3)
        self.assertEqual(node.commit, 2)
        acknowledge(node, 3, 3)
        self.assertEqual(node.commit, 3)

    def test_leader_that_should_steps_down(self) -> None:
        """etcd raft.go, StepDownOnRemoval: it stops as soon as its own removal counts."""
        for kind in (raft_pb2.ConfChangeRemoveNode, raft_pb2.ConfChangeAddLearnerNode):
            node = leader(1, 2, 3, step_down_on_removal=True)
            node.apply_conf_change(change(kind, 1))
            self.assertEqual((node.role, node.leader), (Role.FOLLOWER, 0))


class ChangeTests(SynchronousTestCase):
    """Raft thesis §4.1; etcd raft.go, stepLeader."""

    def proposed(self, entry: Entry, **options: bool) -> list[bytes]:
        """The data of the entry that a leader makes of a follower's proposal."""
        node = leader(1, 2, 3, **options)
        node.step(Message(MessageType.PROPOSE, 1, 2, entries=[entry]))
        return [entry.data for entry in node.ready().entries]

    def test_change_that_could_not_be_applied_becomes_an_empty_entry(self) -> None:
        """An entry that every member would stop at is not made, whoever asks for it."""
        v1, v2 = raft_pb2.ConfChange, raft_pb2.ConfChangeV2
        remove = [raft_pb2.ConfChangeSingle(type=raft_pb2.ConfChangeRemoveNode, node_id=n) for n in (1, 2, 3)]
        explicit = raft_pb2.ConfChangeTransitionJointExplicit
        for entry in (encode(v2(changes=remove)), encode(v2(transition=explicit)), encode(v2())):
            self.assertEqual(self.proposed(entry), [b""])
        good = encode(v1(id=1, type=raft_pb2.ConfChangeRemoveNode, node_id=1))
        self.assertEqual(self.proposed(good), [good.data])
        alone = make_node(1)
        alone.campaign()
        settle(alone)
        alone.step(Message(MessageType.PROPOSE, 1, 2, entries=[good]))
        self.assertEqual([entry.data for entry in alone.ready().entries], [b""])

    def test_malformed_change_becomes_an_empty_entry(self) -> None:
        """Bytes that are no change, and changes of a kind that is not known, do not get into the log unchecked."""
        for kind, data in ((1, b"\xff"), (2, b"\xff"), (1, b"\x10\x09\x18\x05"), (2, b"\x12\x04\x08\x07\x10\x05")):
            entry = encode(raft_pb2.ConfChange() if kind == 1 else raft_pb2.ConfChangeV2())._replace(data=data)
            for validate in (True, False):
                self.assertEqual(self.proposed(entry, validate_conf_changes=validate), [b""])

    def test_joint_state_ends_after_a_hand_over_that_failed(self) -> None:
        """etcd raft.go, appliedTo: the leader asks again with the next entry that is applied."""
        node = leader(1, 2, 3)
        both = [raft_pb2.ConfChangeSingle(type=raft_pb2.ConfChangeAddNode, node_id=n) for n in (4, 5)]
        node.propose_conf_change(raft_pb2.ConfChangeV2(changes=both))
        node.propose([b"a"])
        settle(node)
        node.transfer_leader(2)
        for peer in (2, 3):
            acknowledge(node, peer, 2)
        settle(node)
        self.assertTrue(node.configuration.is_joint)
        self.assertEqual(node.log.last_index, 3)
        node.transfer_leader(1)
        for peer in (2, 3, 4):
            acknowledge(node, peer, 3)
        settle(node)
        self.assertEqual(node.log.last_index, 4)
        for peer in (2, 3, 4):
            acknowledge(node, peer, 4)
        settle(node)
        self.assertEqual(node.configuration.state, ConfState((1, 2, 3, 4, 5)))
