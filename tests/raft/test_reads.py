"""Reads without the log: by asking a quorum, by lease, and while the disk is busy (Raft thesis §6.4)."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.raft.nodes import acknowledge, candidate, follower, kinds, leader, sent_in, settle, take
from twistedkv.raft.config import Config
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import ConfState, Entry, HardState, Message, MessageType, ProposalDropped, ReadState, Role
from twistedkv.raft.node import RaftNode

HEARTBEATS = [(MessageType.HEARTBEAT, 2), (MessageType.HEARTBEAT, 3)]


def answer(node: RaftNode, peer: int, context: bytes) -> None:
    """``peer`` has got a heartbeat and follows."""
    node.step(Message(MessageType.HEARTBEAT_RESPONSE, 1, peer, term=node.term, context=context))


class BusyDiskTests(SynchronousTestCase):
    """etcd's raft loop stands still while the disk works; here reads and heartbeats go on."""

    def test_reads_go_on_while_the_disk_works(self) -> None:
        """A round begins, is confirmed and answered between ready() and advance(), more than once."""
        node = leader(1, 2, 3)
        node.propose([b"a"])
        ready = node.ready()
        for context in (b"1", b"2"):
            self.assertFalse(node.has_ready())
            node.read_index(context)
            messages, read_states = node.take_unsynced()
            self.assertEqual((kinds(messages), read_states), (HEARTBEATS, []))
            answer(node, 3, messages[1].context)
            messages, read_states = node.take_unsynced()
            self.assertEqual(read_states, [ReadState(1, context)])
            self.assertEqual(kinds(messages), [(MessageType.APPEND, 3)])  # it has not acknowledged the entry
        node.advance(ready)
        self.assertEqual(node.ready().read_states, [])

    def test_index_is_what_a_quorum_has(self) -> None:
        """Raft thesis §10.2.1: an entry that others have on disk is committed, and is read, before our disk has it."""
        node = leader(1, 2, 3)
        node.propose([b"a"])
        ready = node.ready()
        acknowledge(node, 2, 2)
        node.read_index(b"before")
        (*_, beat), _ = node.take_unsynced()
        self.assertEqual(node.commit, 1)  # one disk of three
        acknowledge(node, 3, 2)
        node.read_index(b"after")
        (*_, later), _ = node.take_unsynced()
        self.assertEqual(node.commit, 2)
        answer(node, 2, beat.context)
        answer(node, 2, later.context)
        messages, read_states = node.take_unsynced()
        self.assertEqual((messages, read_states), ([], [ReadState(1, b"before"), ReadState(2, b"after")]))
        node.advance(ready)

    def test_single_voter_reads_what_its_disk_has(self) -> None:
        """Alone, what is being written is not committed, and is not read (etcd-io/etcd#14370)."""
        node = leader(1)
        node.propose([b"a"])
        ready = node.ready()
        node.read_index(b"r")
        self.assertEqual(node.take_unsynced(), ([], [ReadState(1, b"r")]))
        node.advance(ready)
        node.read_index(b"s")
        self.assertEqual(node.ready().read_states, [ReadState(2, b"s")])

    def test_new_leader_reads_nothing_before_its_first_entry_commits(self) -> None:
        """Raft thesis §6.4: before that it does not know what is committed, whatever its disk does."""
        node = candidate(1, 2, 3)
        node.step(Message(MessageType.VOTE_RESPONSE, 1, 2, term=1))
        ready = node.ready()
        node.read_index(b"r")
        self.assertEqual(node.take_unsynced(), ([], []))
        acknowledge(node, 2, 1)
        self.assertEqual(node.take_unsynced(), ([], []))
        node.advance(ready)
        messages = [m for m in sent_in(settle(node)) if m.type is MessageType.HEARTBEAT]
        answer(node, 3, messages[0].context)
        self.assertEqual(node.ready().read_states, [ReadState(1, b"r")])

    def test_follower_asks_and_is_answered(self) -> None:
        """A follower's read goes to the leader and comes back while its own disk works."""
        node = follower(1, 2, 3)
        node.step(Message(MessageType.APPEND, 1, 2, term=1, index=1, log_term=1, entries=[Entry(1, 2, b"a")]))
        ready = node.ready()
        node.read_index(b"r")
        messages, _ = node.take_unsynced()
        self.assertEqual(kinds(messages), [(MessageType.READ_INDEX, 2)])
        reply = Message(MessageType.READ_INDEX_RESPONSE, 1, 2, term=1, index=2, entries=[Entry(0, 0, b"r")])
        node.step(reply)
        self.assertEqual(node.take_unsynced(), ([], [ReadState(2, b"r")]))
        node.advance(ready)

    def test_promises_wait(self) -> None:
        """Raft §5.1: acknowledgements and votes are not among what need not wait."""
        node = follower(1, 2, 3)
        node.step(Message(MessageType.APPEND, 1, 2, term=1, index=1, log_term=1, entries=[Entry(1, 2, b"a")]))
        ready = node.ready()
        node.step(Message(MessageType.APPEND, 1, 2, term=1, index=2, log_term=1, entries=[Entry(1, 3, b"b")]))
        node.step(Message(MessageType.VOTE, 1, 3, term=2, index=9, log_term=1, context=b"CampaignTransfer"))
        self.assertEqual(node.take_unsynced(), ([], []))
        self.assertEqual(kinds(ready.responses), [(MessageType.APPEND_RESPONSE, 2)])
        node.advance(ready)
        later = kinds(take(node).responses)
        self.assertEqual(later, [(MessageType.APPEND_RESPONSE, 2), (MessageType.VOTE_RESPONSE, 3)])


class AnswerTests(SynchronousTestCase):
    def test_answer_to_a_question_that_was_not_asked(self) -> None:
        """A number that no heartbeat has carried confirms nothing."""
        node = leader(1, 2, 3)
        node.read_index(b"r")
        beat = take(node).messages[0]
        for context in (b"", b"short", bytes(9), (1 << 60).to_bytes(8, "big"), bytes(8)):
            answer(node, 2, context)
        self.assertFalse(node.has_ready())
        answer(node, 2, beat.context)
        self.assertEqual(node.ready().read_states, [ReadState(1, b"r")])

    def test_learner_confirms_nothing(self) -> None:
        """Raft §4.2.1: a learner is no part of a quorum; its own reads are answered all the same."""
        node = leader(1, 2, 3, learners=(4,))
        node.step(Message(MessageType.READ_INDEX, 1, 4, entries=[Entry(0, 0, b"r")]))
        beats = take(node).messages
        answer(node, 4, beats[0].context)
        self.assertFalse(node.has_ready())
        answer(node, 3, beats[0].context)
        (reply,) = node.ready().messages
        self.assertEqual((reply.type, reply.to, reply.index), (MessageType.READ_INDEX_RESPONSE, 4, 1))

    def test_only_the_leader_answers(self) -> None:
        """A follower believes its leader, and nobody else, how far it must be."""
        node = follower(1, 2, 3)
        for sender, entries in ((3, 1), (2, 0), (2, 2)):
            contexts = [Entry(0, 0, b"r")] * entries
            node.step(Message(MessageType.READ_INDEX_RESPONSE, 1, sender, term=1, index=9, entries=contexts))
        self.assertFalse(node.has_ready())

    def test_several_contexts_in_one_question(self) -> None:
        """etcd raft.go, responseToReadIndexReq: the first one counts; a question without any is none."""
        node = leader(1, 2, 3)
        node.step(Message(MessageType.READ_INDEX, 1, 3))
        self.assertFalse(node.has_ready())
        node.step(Message(MessageType.READ_INDEX, 1, 3, entries=[Entry(0, 0, b"1"), Entry(0, 0, b"2")]))
        answer(node, 2, take(node).messages[0].context)
        (reply,) = node.ready().messages
        self.assertEqual([entry.data for entry in reply.entries], [b"1"])


def leasing(**options: bool) -> RaftNode:
    return leader(1, 2, 3, read_only_lease_based=True, **options)


def beat(node: RaftNode) -> bytes:
    """One tick; what its heartbeats carry."""
    node.tick()
    beats = [m for m in sent_in(settle(node)) if m.type is MessageType.HEARTBEAT]
    assert kinds(beats) == HEARTBEATS
    return beats[0].context


class LeaseTests(SynchronousTestCase):
    """Raft thesis §6.4.1; etcd raft.go, ReadOnlyLeaseBased."""

    def test_lease_needs_check_quorum(self) -> None:
        """Members that vote for anybody at any time give no lease."""
        wrong = {"read_only_lease_based": True, "check_quorum": False}
        self.assertRaises(ValueError, lambda: Config(id=1, random=Random(1), **wrong))

    def test_read_within_the_lease_is_answered_at_once(self) -> None:
        """After one heartbeat that a quorum answered, reads ask nobody."""
        node = leasing()
        answer(node, 2, beat(node))
        node.read_index(b"r")
        node.step(Message(MessageType.READ_INDEX, 1, 3, entries=[Entry(0, 0, b"s")]))
        ready = take(node)
        self.assertEqual(ready.read_states, [ReadState(1, b"r")])
        self.assertEqual(kinds(ready.messages), [(MessageType.READ_INDEX_RESPONSE, 3)])

    def test_lease_ends_before_anybody_else_can_be_elected(self) -> None:
        """It counts from when the heartbeat was sent; then reads ask a quorum again, and get a new lease by it."""
        node = leasing()
        context = beat(node)
        for _ in range(3):
            beat(node)
        answer(node, 3, context)
        for _ in range(6):
            node.read_index(b"r")
            self.assertEqual(take(node).read_states, [ReadState(1, b"r")])
            beat(node)
        node.read_index(b"last")
        self.assertEqual(take(node).read_states, [])  # 9 ticks of 10; the first one of a member may have come at once
        answer(node, 3, beat(node))
        self.assertEqual(take(node).read_states, [ReadState(1, b"last")])
        node.read_index(b"r")
        self.assertEqual(take(node).read_states, [ReadState(1, b"r")])

    def test_no_lease_without_a_quorum(self) -> None:
        """What no quorum has answered gives no lease, nor does the election that the leader won."""
        node = leader(1, 2, 3, read_only_lease_based=True)
        node.read_index(b"r")
        beats = take(node)
        self.assertEqual((kinds(beats.messages), beats.read_states), (HEARTBEATS, []))

    def test_hand_over_gives_up_the_lease(self) -> None:
        """Raft thesis §6.4.1, etcd-io/raft#99: who is told to campaign is voted for at once, and may be so late."""
        node = leasing()
        node.transfer_leader(3)
        for _ in range(12):
            context = beat(node)
            answer(node, 2, context)
        self.assertEqual(node.transferee, 0)
        node.read_index(b"r")
        messages = take(node)
        self.assertEqual(messages.read_states, [])
        answer(node, 2, messages.messages[0].context)
        self.assertEqual(take(node).read_states, [ReadState(1, b"r")])

    def test_new_leader_commits_first(self) -> None:
        """Raft thesis §6.4: with a lease, too, it does not know at first what is committed."""
        node = candidate(1, 2, 3, read_only_lease_based=True)
        node.step(Message(MessageType.VOTE_RESPONSE, 1, 2, term=1))
        settle(node)
        answer(node, 2, beat(node))
        node.read_index(b"r")
        self.assertEqual([state for ready in settle(node) for state in ready.read_states], [])
        acknowledge(node, 2, 1)
        self.assertEqual([state for ready in settle(node) for state in ready.read_states], [ReadState(1, b"r")])

    def test_follower_does_not_forget_its_leader(self) -> None:
        """etcd raft.go, stepFollower: the leader relies on its time."""
        for leases, leader_after in ((True, 2), (False, 0)):
            node = follower(1, 2, 3, read_only_lease_based=leases)
            node.forget_leader()
            self.assertEqual(node.leader, leader_after)

    def test_nobody_asks_without_leases(self) -> None:
        """Where reads do not go by lease heartbeats ask nothing, as etcd's do."""
        self.assertEqual(beat(leader(1, 2, 3)), b"")


class Clocked:
    """Three members whose ticks have one length, and begin whenever; a network that takes its time, and can be cut."""

    TICK = 10  # moments

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0
        self.phases = {number: self.random.randrange(self.TICK) for number in (1, 2, 3)}
        self.nodes = {number: self.make(number) for number in (1, 2, 3)}
        self.flying: list[tuple[int, Message]] = []  # when it arrives
        self.cut = 0  # who is on its own
        self.committed = 0  # the highest index anywhere
        self.floors: dict[bytes, int] = {}  # what was committed when a read was asked for
        self.reads_by_lease = 0

    def make(self, number: int) -> RaftNode:
        config = Config(id=number, random=Random(self.random.random()), election_ticks=4, read_only_lease_based=True)
        return RaftNode(config, RaftLog(), HardState(), ConfState((1, 2, 3)), 0)

    def moment(self) -> None:
        self.now += 1
        arrived = [message for when, message in self.flying if when <= self.now]
        self.flying = [(when, message) for when, message in self.flying if when > self.now]
        for message in arrived:
            if self.cut not in (message.to, message.sender):
                self.nodes[message.to].step(message)
        for number, node in self.nodes.items():
            if self.now % self.TICK == self.phases[number]:
                node.tick()
            self.request(number, node)
            while node.has_ready():
                ready = node.ready()
                self.see(ready.read_states)
                node.advance(ready)
                self.send([*ready.messages, *ready.responses])
            self.committed = max(self.committed, node.commit)

    def request(self, number: int, node: RaftNode) -> None:
        if node.role is not Role.LEADER:
            return
        try:
            if self.random.random() < 0.3:
                node.propose([b"w"])
            context = b"%d %d" % (number, self.now)
            self.floors[context] = self.committed
            node.read_index(context)
            self.reads_by_lease += self.is_answered_alone(node)
            if self.random.random() < 0.003:
                node.transfer_leader(self.random.choice([1, 2, 3]))
        except ProposalDropped:
            pass

    def is_answered_alone(self, node: RaftNode) -> bool:
        messages, read_states = node.take_unsynced()
        self.send(messages)
        self.see(read_states)
        return bool(read_states)

    def see(self, read_states: Iterable[ReadState]) -> None:
        for index, context in read_states:
            if index < self.floors[context]:
                raise AssertionError(f"read {context!r} sees {index}, and {self.floors[context]} was committed before")

    def send(self, messages: Iterable[Message]) -> None:
        for message in messages:
            delay = self.random.choice([1, 1, 2, 5, self.TICK, 3 * self.TICK if self.random.random() < 0.1 else 1])
            self.flying.append((self.now + delay, message))


class ClockedLeaseTests(SynchronousTestCase):
    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 1 << 32))
    def test_leases_are_safe_where_clocks_are_alike(self, seed: int) -> None:
        """etcd-io/raft#166: no read is stale, whoever is cut off when, and whenever members' ticks come."""
        cluster = Clocked(seed)
        for now in range(1500):
            if now % 150 == 0:
                cluster.cut = cluster.random.choice([0, 1, 2, 3, *leaders(cluster), *leaders(cluster)])
            cluster.moment()
        self.assertGreater(cluster.reads_by_lease, 50)


def leaders(cluster: Clocked) -> list[int]:
    return [number for number, node in cluster.nodes.items() if node.role is Role.LEADER]
