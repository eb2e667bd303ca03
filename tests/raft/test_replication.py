"""A leader and its followers' logs: probing, snapshots, commit indexes, and what the disk has (Raft §5.3, §7)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.raft.nodes import acknowledge, change, follower, kinds, leader, sent_in, settle, take
from twistedkv.pb import raft_pb2
from twistedkv.raft.messages import ConfState, Entry, Message, MessageType, Snapshot, SnapshotMeta
from twistedkv.raft.node import RaftNode
from twistedkv.raft.progress import ProgressState


def heard_of(node: RaftNode, peer: int) -> list[Message]:
    """A heartbeat was answered; what the leader sends upon it."""
    node.step(Message(MessageType.HEARTBEAT_RESPONSE, 1, peer, term=node.term))
    return [message for message in sent_in(settle(node)) if message.to == peer]


class ProbeTests(SynchronousTestCase):
    """etcd raft/tracker/progress.go."""

    def test_unreachable_member_is_probed(self) -> None:
        """After a lost message one append at a time goes out, from what the member is known to have."""
        node = leader(1, 2, 3)
        for number in range(3):
            node.propose([bytes([number])])
        settle(node)
        node.report_unreachable(2)
        node.report_unreachable(9)
        self.assertEqual([node.progress[member].state for member in (2, 3)], [
            ProgressState.PROBE, ProgressState.REPLICATE,
        ])  # fmt: skip
        (probe,) = heard_of(node, 2)
        self.assertEqual((probe.index, len(probe.entries)), (1, 3))
        node.propose([b"x"])
        self.assertEqual([message.to for message in sent_in(settle(node))], [3])
        acknowledge(node, 2, 4)
        sent = [message for message in sent_in(settle(node)) if message.to == 2]
        self.assertEqual([len(message.entries) for message in sent], [1])
        self.assertIs(node.progress[2].state, ProgressState.REPLICATE)

    def test_refusals_that_came_late_change_nothing(self) -> None:
        """Raft §5.3: an append that was refused, and acknowledged when it came again, is not sent a third time."""
        node = leader(1, 2, 3)
        node.propose([b"a"])
        settle(node)
        acknowledge(node, 2, 2)
        settle(node)
        node.step(Message(MessageType.APPEND_RESPONSE, 1, 2, term=1, index=1, reject=True, reject_hint=0))
        self.assertEqual((node.progress[2].match, sent_in(settle(node))), (2, []))


class SnapshotTests(SynchronousTestCase):
    """Raft §7; etcd raft.go, maybeSendSnapshot and MsgSnapStatus."""

    def compacted(self, snapshot: Snapshot | None) -> RaftNode:
        """A leader at entry 6 that has nothing up to 4 any more; member 2 has nothing, and does not answer."""
        node = leader(1, 2, 3)
        for number in range(5):
            node.propose([bytes([number])])
        settle(node)
        node.apply_conf_change(change(raft_pb2.ConfChangeRemoveNode, 2))
        acknowledge(node, 3, 6)
        settle(node)
        node.take_snapshot = lambda: snapshot
        node.log.compact(4)
        node.apply_conf_change(change(raft_pb2.ConfChangeAddNode, 2))
        settle(node)
        return node

    def refused(self, node: RaftNode) -> list[Message]:
        """Member 2 has nothing at all; what it is sent instead."""
        rejected = node.progress[2].next - 1
        node.step(Message(MessageType.APPEND_RESPONSE, 1, 2, term=1, index=rejected, reject=True))
        return [message for message in sent_in(settle(node)) if message.to == 2]

    def test_member_that_is_too_far_behind_gets_a_snapshot(self) -> None:
        """What it needs is compacted, so it gets the state, and nothing else until it says that it has it."""
        snapshot = Snapshot(SnapshotMeta(6, 1, ConfState((1, 2, 3))))
        node = self.compacted(snapshot)
        (message,) = self.refused(node)
        self.assertEqual((message.type, message.snapshot), (MessageType.SNAPSHOT, snapshot))
        self.assertEqual(node.progress[2].describe(False), "StateSnapshot match=0 next=7 paused pendingSnap=6")
        node.propose([b"x"])
        settle(node)
        self.assertEqual(heard_of(node, 2), [])
        acknowledge(node, 2, 6)
        sent = [message for message in sent_in(settle(node)) if message.to == 2]
        self.assertEqual([(message.index, len(message.entries)) for message in sent], [(6, 1)])

    def test_snapshot_is_sent_to_who_is_there(self) -> None:
        """Who has not answered for an election timeout is not sent a whole state."""
        node = self.compacted(Snapshot(SnapshotMeta(6, 1, ConfState((1, 2, 3)))))
        node.progress[2].recent_active = False
        node.progress[2].next = 1
        node.propose([b"x"])
        self.assertEqual([message.to for message in sent_in(settle(node))], [3])
        self.assertEqual(kinds(heard_of(node, 2)), [(MessageType.SNAPSHOT, 2)])

    def test_snapshot_may_have_to_be_waited_for(self) -> None:
        """While there is none the member is asked about now and then, and gets it when there is one."""
        node = self.compacted(None)
        self.assertEqual(self.refused(node), [])
        self.assertEqual(heard_of(node, 2), [])
        node.take_snapshot = lambda: Snapshot(SnapshotMeta(6, 1, ConfState((1, 2, 3))))
        self.assertEqual(kinds(heard_of(node, 2)), [(MessageType.SNAPSHOT, 2)])

    def test_what_becomes_of_a_snapshot(self) -> None:
        """Delivered, the log goes on behind it; failed, it begins again; either way after the next sign of life."""
        for failed, expected in ((False, (MessageType.APPEND, 6)), (True, (MessageType.SNAPSHOT, 0))):
            node = self.compacted(Snapshot(SnapshotMeta(6, 1, ConfState((1, 2, 3)))))
            self.refused(node)
            node.report_snapshot(3, failed=failed)  # it is being sent none
            node.report_snapshot(9, failed=failed)
            node.report_snapshot(2, failed=failed)
            node.propose([b"x"])
            self.assertEqual([message.to for message in sent_in(settle(node))], [3])
            (message,) = heard_of(node, 2)
            self.assertEqual((message.type, message.index), expected)

    def test_only_what_the_log_can_follow_ends_the_wait(self) -> None:
        """etcd raft.go, stepLeader: an acknowledgement from before what is compacted does not, any other does."""
        node = self.compacted(Snapshot(SnapshotMeta(6, 1, ConfState((1, 2, 3)))))
        self.refused(node)
        acknowledge(node, 2, 3)
        self.assertIs(node.progress[2].state, ProgressState.SNAPSHOT)
        acknowledge(node, 2, 4)
        sent = [message for message in sent_in(settle(node)) if message.to == 2 and message.entries]
        self.assertEqual((node.progress[2].state, sent[0].index), (ProgressState.REPLICATE, 4))


class CommitTests(SynchronousTestCase):
    def test_heartbeat_says_no_more_than_is_known_to_be_there(self) -> None:
        """Raft §5.3: beyond what a member has acknowledged its log may be another one."""
        node = leader(1, 2, 3, heartbeat_ticks=2)
        node.propose([b"a"])
        settle(node)
        acknowledge(node, 2, 2)
        settle(node)
        node.tick()
        self.assertEqual(sent_in(settle(node)), [])
        node.tick()
        self.assertEqual([(m.to, m.commit) for m in sent_in(settle(node))], [(2, 2), (3, 1)])

    def test_fewer_members_need_fewer_acknowledgements(self) -> None:
        """Raft §6: an entry that waited for a member commits when that one is removed, and all hear of it."""
        node = leader(1, 2, 3, 4)
        node.propose([b"a"])
        settle(node)
        acknowledge(node, 2, 2)
        self.assertEqual(node.commit, 1)
        node.apply_conf_change(change(raft_pb2.ConfChangeRemoveNode, 4))
        self.assertEqual(node.commit, 2)
        self.assertEqual([(m.to, m.commit) for m in sent_in(settle(node))], [(2, 2), (3, 2)])

    def test_read_is_confirmed_when_nobody_is_left_to_be_asked(self) -> None:
        """A read that waits for members that are removed then is answered."""
        node = leader(1, 2)
        node.read_index(b"r")
        settle(node)
        node.apply_conf_change(change(raft_pb2.ConfChangeRemoveNode, 2))
        self.assertEqual([state.context for state in take(node).read_states], [b"r"])


class DurabilityTests(SynchronousTestCase):
    def test_what_was_written_in_vain_is_not_what_was_written(self) -> None:
        """Raft §5.3: if the end of what the disk is busy with is replaced, the beginning of it is durable all the same.

        It may be applied, and compacted, before the new end is durable.
        """
        node = follower(1, 2, 3)
        entries = [Entry(1, index, b"old") for index in (2, 3, 4)]
        node.step(Message(MessageType.APPEND, 1, 2, term=1, index=1, log_term=1, entries=entries, commit=2))
        ready = node.ready()
        newer = [Entry(2, 3, b"new"), Entry(2, 4, b"new")]
        node.step(Message(MessageType.APPEND, 1, 3, term=2, index=2, log_term=1, entries=newer))
        node.advance(ready)
        self.assertEqual((node.applied, node.log.stable), (2, 2))
        node.log.compact(node.applied)
        ready = node.ready()
        self.assertEqual(ready.entries, newer)
        node.advance(ready)
        self.assertEqual(node.log.stable, 4)

    def test_all_of_it_may_be_replaced(self) -> None:
        """If nothing of what was written is left, nothing is durable by it."""
        node = follower(1, 2, 3)
        old = [Entry(1, 2, b"old")]
        node.step(Message(MessageType.APPEND, 1, 2, term=1, index=1, log_term=1, entries=old))
        ready = node.ready()
        newer = [Entry(2, 2, b"new"), Entry(2, 3, b"new")]
        node.step(Message(MessageType.APPEND, 1, 3, term=2, index=1, log_term=1, entries=newer))
        node.advance(ready)
        self.assertEqual(node.log.stable, 1)
        (answer,) = take(node).responses
        self.assertEqual((answer.to, answer.index), (3, 3))


class CommitNoticeTests(SynchronousTestCase):
    """An append that brings nothing but a commit index."""

    def append(self, node: RaftNode, index: int, commit: int, *entries: Entry) -> list[Message]:
        """The leader's append, and what the follower answers."""
        node.step(Message(MessageType.APPEND, 1, 2, term=1, log_term=1, index=index, entries=entries, commit=commit))
        return sent_in(settle(node))

    def test_is_answered_as_etcd_does(self) -> None:
        """By default every append has its answer."""
        node = follower(1, 2, 3)
        self.append(node, 1, 1, Entry(1, 2, b"a"))
        self.assertEqual([message.index for message in self.append(node, 2, 2)], [2])

    def test_needs_no_answer(self) -> None:
        """Where it is left out the index counts all the same; what is asked for, or asked again, is answered."""
        node = follower(1, 2, 3, answers_commits=False)
        self.assertEqual([message.index for message in self.append(node, 1, 1, Entry(1, 2, b"a"))], [2])
        self.assertEqual((self.append(node, 2, 2), node.commit), ([], 2))
        self.assertEqual([message.index for message in self.append(node, 2, 2)], [2])  # the answer before was lost
        self.assertEqual([message.index for message in self.append(node, 2, 3, Entry(1, 3, b"b"))], [3])
        (refused,) = self.append(node, 9, 9)
        self.assertTrue(refused.reject)
