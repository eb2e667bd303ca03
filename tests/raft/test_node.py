"""One node and its driver: what is promised when. Clusters are in test_interaction.py and test_cluster.py."""

from __future__ import annotations

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from tests.raft.nodes import kinds, leader, make_node, settle, take
from twistedkv.errors import InvariantError
from twistedkv.pb import raft_pb2
from twistedkv.raft.confchange import ConfChangeError, decode
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import (
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MessageType,
    ReadState,
    Ready,
    Role,
    Snapshot,
    SnapshotMeta,
    SoftState,
)
from twistedkv.raft.node import Config, ProposalDropped, RaftNode


def lead(node: RaftNode) -> list[Ready]:
    """Make a single voter the leader."""
    node.campaign()
    return settle(node)


def applied_data(readies: list[Ready]) -> list[bytes]:
    return [entry.data for ready in readies for entry in ready.committed]


class ConfigTests(SynchronousTestCase):
    def test_impossible_settings_are_refused(self) -> None:
        """Node id 0, heartbeats slower than elections and an empty window make no node."""
        for wrong in ({"id": 0}, {"heartbeat_ticks": 10}, {"heartbeat_ticks": 0}, {"max_inflight": 0}):
            self.assertRaises(ValueError, lambda wrong=wrong: Config(**({"id": 1, "random": Random(1)} | wrong)))


class SingleVoterTests(SynchronousTestCase):
    def test_single_voter_elects_itself_once_its_vote_is_durable(self) -> None:
        """Raft §5.2: term and vote are persisted first, and only then is it leader."""
        node = make_node(1, pre_vote=False)
        node.campaign()
        ready = node.ready()
        self.assertEqual((ready.hard_state, ready.must_sync), (HardState(1, 1, 0), True))
        self.assertIs(node.role, Role.CANDIDATE)
        node.advance(ready)
        self.assertEqual((node.role, node.leader, node.term), (Role.LEADER, 1, 1))
        ready = node.ready()
        self.assertEqual(ready.soft_state, SoftState(1, Role.LEADER))
        self.assertEqual(ready.entries, [Entry(1, 1, b"")])  # Raft §8: an entry of its own term

    def test_single_voter_is_elected_by_time(self) -> None:
        """Without a call it campaigns after one to two election timeouts."""
        node = make_node(1)
        for _ in range(9):
            node.tick()
        self.assertFalse(node.has_ready())
        for _ in range(11):
            node.tick()
        settle(node)
        self.assertIs(node.role, Role.LEADER)

    def test_commit_waits_for_the_disk(self) -> None:
        """Raft §5.3: what is proposed commits when advance() says that it is durable, not before."""
        node = make_node(1)
        lead(node)
        node.propose([b"a", b"b"])
        ready = node.ready()
        self.assertEqual([entry.data for entry in ready.entries], [b"a", b"b"])
        self.assertEqual((ready.committed, ready.must_sync, node.commit), ((), True, 1))
        node.advance(ready)
        self.assertEqual(node.commit, 3)
        ready = node.ready()
        self.assertEqual([entry.data for entry in ready.committed], [b"a", b"b"])
        self.assertEqual((ready.hard_state, ready.must_sync), (HardState(1, 1, 3), False))
        self.assertEqual(node.applied, 1)
        node.advance(ready)
        self.assertEqual(node.applied, 3)
        self.assertFalse(node.has_ready())

    def test_proposals_during_a_sync_are_the_next_batch(self) -> None:
        """Group commit: what comes while the disk works is neither lost nor taken for durable."""
        node = make_node(1)
        lead(node)
        node.propose([b"a"])
        first = node.ready()
        node.propose([b"b"])
        node.propose([b"c"])
        self.assertFalse(node.has_ready())
        node.advance(first)
        self.assertEqual(node.commit, 2)
        second = node.ready()
        self.assertEqual([entry.data for entry in second.entries], [b"b", b"c"])
        self.assertEqual([entry.data for entry in second.committed], [b"a"])
        node.advance(second)
        self.assertEqual(node.commit, 4)

    def test_restart_goes_on_where_it_was(self) -> None:
        """What was committed is applied again from the applied index on, and the term only grows."""
        log = RaftLog([Entry(3, index, b"%d" % index) for index in range(1, 6)])
        node = RaftNode(Config(id=1, random=Random(1)), log, HardState(3, 1, 4), ConfState((1,)), 2)
        self.assertEqual(applied_data(settle(node)), [b"3", b"4"])
        self.assertEqual(applied_data(lead(node)), [b"5", b""])
        self.assertEqual((node.term, node.commit), (4, 6))

    def test_impossible_restart_is_refused(self) -> None:
        """A commit index or an applied one beyond the log means that entries were lost: the member stops."""
        log = [Entry(1, 1, b"")]
        config = Config(id=1, random=Random(1))
        for commit, applied in ((2, 0), (0, 2)):
            state = HardState(1, 1, commit)
            self.assertRaises(InvariantError, RaftNode, config, RaftLog(log), state, ConfState((1,)), applied)

    def test_applied_may_be_ahead_of_the_durable_commit_index(self) -> None:
        """A commit index alone is not synced; what was applied before the crash is not applied again."""
        log = RaftLog([Entry(1, index, b"") for index in (1, 2, 3)])
        node = RaftNode(Config(id=1, random=Random(1)), log, HardState(1, 1, 1), ConfState((1,)), 2)
        self.assertEqual((node.commit, node.has_ready()), (2, False))

    def test_read_waits_for_an_entry_of_the_term(self) -> None:
        """Raft thesis §6.4: a new leader does not know yet what is committed."""
        node = make_node(1)
        node.campaign()
        for _ in range(2):
            node.advance(node.ready())
        self.assertIs(node.role, Role.LEADER)
        node.read_index(b"r")
        ready = node.ready()
        self.assertEqual(ready.read_states, [])
        node.advance(ready)
        self.assertEqual(node.ready().read_states, [ReadState(1, b"r")])

    def test_read_of_a_single_voter_is_answered_at_once(self) -> None:
        """A single voter asks nobody."""
        node = make_node(1)
        lead(node)
        node.read_index(b"1")
        node.read_index(b"2")
        self.assertEqual(node.ready().read_states, [ReadState(1, b"1"), ReadState(1, b"2")])

    def test_applied_batches_are_limited(self) -> None:
        """A long replay comes in batches of limited size."""
        log = RaftLog([Entry(1, index, bytes(100)) for index in range(1, 8)])
        config = Config(id=1, random=Random(1), max_committed_bytes_per_ready=230)
        node = RaftNode(config, log, HardState(1, 1, 7), ConfState((1,)), 0)
        self.assertEqual([len(ready.committed) for ready in settle(node)], [2, 2, 2, 1])

    def test_first_members_come_from_the_log(self) -> None:
        """A new cluster's first entries add its members, and only then can one campaign."""
        change = raft_pb2.ConfChange(id=0, type=raft_pb2.ConfChangeAddNode, node_id=1)
        log = RaftLog([Entry(1, 1, change.SerializeToString(), EntryType.CONF_CHANGE)])
        node = RaftNode(Config(id=1, random=Random(1)), log, HardState(1, 0, 1), ConfState(), 0)
        node.campaign()
        self.assertIs(node.role, Role.FOLLOWER)
        ready = node.ready()
        self.assertEqual(node.apply_conf_change(decode(ready.committed[0])), ConfState((1,)))
        node.advance(ready)
        lead(node)
        self.assertEqual((node.role, node.term), (Role.LEADER, 2))

    def test_compacted_log_goes_on(self) -> None:
        """Compaction takes nothing that is still needed."""
        node = make_node(1)
        lead(node)
        node.propose([b"a"])
        settle(node)
        node.log.compact(node.applied)
        node.propose([b"b"])
        self.assertEqual(applied_data(settle(node)), [b"b"])


class DriverTests(SynchronousTestCase):
    def test_one_ready_at_a_time(self) -> None:
        """A driver that takes a second Ready, or confirms another one, is wrong and is told so."""
        node = make_node(1)
        node.campaign()
        ready = node.ready()
        self.assertRaises(InvariantError, node.ready)
        self.assertRaises(InvariantError, node.advance, ready._replace(must_sync=False))
        node.advance(ready)
        self.assertRaises(InvariantError, node.advance, ready)

    def test_heartbeats_do_not_wait_for_the_disk(self) -> None:
        """While a sync takes long, a leader's heartbeats can be sent."""
        node = leader(1, 2, 3)
        node.propose([b"a"])
        ready = node.ready()
        node.tick()
        messages, _ = node.take_unsynced()
        beats = kinds(messages)
        self.assertEqual(beats, [(MessageType.HEARTBEAT, 2), (MessageType.HEARTBEAT, 3)])
        self.assertEqual(node.take_unsynced(), ([], []))
        node.advance(ready)

    def test_answers_wait_for_the_disk(self) -> None:
        """Raft §5.1: votes and acknowledgements leave after what they promise is durable."""
        node = make_node(1, 2, 3)
        node.step(Message(MessageType.VOTE, 1, 2, term=1, index=0, log_term=0))
        ready = node.ready()
        self.assertEqual((ready.hard_state, kinds(ready.messages)), (HardState(1, 2, 0), []))
        self.assertEqual(kinds(ready.responses), [(MessageType.VOTE_RESPONSE, 2)])
        node.advance(ready)
        node.step(Message(MessageType.APPEND, 1, 2, term=1, entries=[Entry(1, 1, b"")]))
        ready = node.ready()
        self.assertEqual(kinds(ready.responses), [(MessageType.APPEND_RESPONSE, 2)])
        self.assertEqual(ready.messages, [])

    def test_nothing_is_proposed_without_a_leader(self) -> None:
        """Without a leader proposals and reads are refused at once."""
        node = make_node(1, 2, 3)
        self.assertRaises(ProposalDropped, node.propose, [b"a"])
        self.assertRaises(ProposalDropped, node.propose_conf_change, raft_pb2.ConfChange(id=1, node_id=4))
        self.assertRaises(ProposalDropped, node.read_index, b"r")
        self.assertRaises(ProposalDropped, node.transfer_leader, 2)

    def test_follower_forwards(self) -> None:
        """A follower hands proposals, reads and hand-overs to the leader, and answers with what the leader says."""
        node = make_node(1, 2, 3)
        node.step(Message(MessageType.HEARTBEAT, 1, 2, term=1))
        node.propose([b"a"])
        node.read_index(b"r")
        node.transfer_leader(3)
        messages = take(node).messages
        self.assertEqual([(m.type, m.to, m.term) for m in messages[1:]], [
            (MessageType.PROPOSE, 2, 0), (MessageType.READ_INDEX, 2, 0), (MessageType.TRANSFER_LEADER, 2, 1),
        ])  # fmt: skip
        self.assertEqual((messages[1].entries[0].data, messages[3].sender), (b"a", 3))
        node.step(Message(MessageType.READ_INDEX_RESPONSE, 1, 2, term=1, index=9, entries=[Entry(0, 0, b"r")]))
        self.assertEqual(node.ready().read_states, [ReadState(9, b"r")])


class FollowerTests(SynchronousTestCase):
    def test_one_vote_a_term(self) -> None:
        """Raft §5.2: who has voted for one candidate refuses the others of that term, and repeats its vote."""
        node = make_node(1, 2, 3)
        for candidate, refused in ((2, False), (3, True), (2, False)):
            node.step(Message(MessageType.VOTE, 1, candidate, term=1))
            (answer,) = take(node).responses
            self.assertEqual((answer.to, answer.reject), (candidate, refused))

    def test_vote_survives_a_restart(self) -> None:
        """Raft §5.1: the vote is durable, so that a restarted node does not vote twice."""
        node = RaftNode(Config(id=1, random=Random(1)), RaftLog(), HardState(1, 2, 0), ConfState((1, 2, 3)), 0)
        node.step(Message(MessageType.VOTE, 1, 3, term=1))
        self.assertTrue(take(node).responses[0].reject)

    def test_pre_vote_promises_nothing(self) -> None:
        """Raft thesis §9.6: any number of pre-votes are granted, and term and vote stay as they are."""
        node = make_node(1, 2, 3)
        for candidate in (2, 3):
            node.step(Message(MessageType.PRE_VOTE, 1, candidate, term=1))
            ready = take(node)
            self.assertEqual((ready.hard_state, ready.responses[0].reject), (None, False))

    def test_commit_stops_at_what_is_known_to_match(self) -> None:
        """Raft §5.3: entries after the last one that the leader has sent may be another leader's."""
        node = make_node(1, 2, 3)
        old = [Entry(1, index, b"old") for index in (1, 2, 3)]
        node.step(Message(MessageType.APPEND, 1, 2, term=1, entries=old))
        settle(node)
        node.step(Message(MessageType.APPEND, 1, 3, term=2, index=1, log_term=1, commit=3))
        self.assertEqual(node.commit, 1)

    def test_old_leader_is_told(self) -> None:
        """Raft §5.1: a message of an old term changes nothing, and its sender learns the new term."""
        node = make_node(1, 2, 3)
        node.step(Message(MessageType.HEARTBEAT, 1, 2, term=3))
        settle(node)
        node.step(Message(MessageType.APPEND, 1, 3, term=2, entries=[Entry(2, 1, b"")]))
        ready = take(node)
        self.assertEqual([(m.type, m.to, m.term) for m in ready.responses], [(MessageType.APPEND_RESPONSE, 3, 3)])
        self.assertEqual((node.leader, node.log.last_index), (2, 0))

    def test_learner_never_campaigns(self) -> None:
        """A learner gets the log and has no vote, so it leads nothing."""
        config = Config(id=1, random=Random(1))
        node = RaftNode(config, RaftLog(), HardState(), ConfState((2,), (1,)), 0)
        for _ in range(50):
            node.tick()
        node.step(Message(MessageType.TIMEOUT_NOW, 1, 2, term=1))
        self.assertEqual((node.role, node.term, node.is_learner), (Role.FOLLOWER, 1, True))


class LeaderTests(SynchronousTestCase):
    def test_only_entries_of_its_term_are_counted(self) -> None:
        """Raft §5.4.2, figure 8: a majority has an entry of an earlier term, and it is not committed by that."""
        log = RaftLog([Entry(2, 1, b"old")])
        node = RaftNode(Config(id=1, random=Random(1), pre_vote=False), log, HardState(3), ConfState((1, 2, 3)), 0)
        node.campaign()
        settle(node)
        node.step(Message(MessageType.VOTE_RESPONSE, 1, 2, term=4))
        settle(node)
        node.step(Message(MessageType.APPEND_RESPONSE, 1, 2, term=4, index=1))
        self.assertEqual(node.commit, 0)
        node.step(Message(MessageType.APPEND_RESPONSE, 1, 2, term=4, index=2))
        self.assertEqual(node.commit, 2)

    def test_quorum_of_others_commits_before_the_own_disk(self) -> None:
        """Raft thesis §10.2.1: two of three are a majority, whoever they are; a single one is none."""
        node = leader(1, 2, 3)
        node.propose([b"a"])
        ready = node.ready()
        for peer in (2, 3):
            self.assertEqual(node.commit, 1)
            node.step(Message(MessageType.APPEND_RESPONSE, 1, peer, term=1, index=2))
        self.assertEqual(node.commit, 2)
        node.advance(ready)

    def test_read_needs_a_quorum_that_answers_this_round(self) -> None:
        """etcd-io/raft#397: answers to earlier heartbeats confirm nothing; all reads of a turn share a round."""
        node = leader(1, 2, 3)
        node.tick()
        old = take(node).messages[0]
        node.read_index(b"1")
        node.read_index(b"2")
        beats = take(node).messages
        self.assertEqual(kinds(beats), [(MessageType.HEARTBEAT, 2), (MessageType.HEARTBEAT, 3)])
        node.step(Message(MessageType.HEARTBEAT_RESPONSE, 1, 2, term=1, context=old.context))
        self.assertEqual([ready.read_states for ready in settle(node)], [])
        node.step(Message(MessageType.HEARTBEAT_RESPONSE, 1, 2, term=1, context=beats[0].context))
        self.assertEqual(node.ready().read_states, [ReadState(1, b"1"), ReadState(1, b"2")])

    def test_answer_to_an_earlier_round_does_not_confirm_a_later_one(self) -> None:
        """etcd-io/raft#397: who followed before a read was asked for may follow another leader by now."""
        node = leader(1, 2, 3)
        node.read_index(b"1")
        first = take(node).messages[0]
        node.read_index(b"2")
        take(node)
        node.step(Message(MessageType.HEARTBEAT_RESPONSE, 1, 2, term=1, context=first.context))
        self.assertEqual(take(node).read_states, [ReadState(1, b"1")])
        self.assertFalse(node.has_ready())

    def test_later_round_confirms_earlier_ones(self) -> None:
        """An answer to a later heartbeat is as good: the lost one is not waited for."""
        node = leader(1, 2, 3)
        for context in (b"1", b"2"):
            node.read_index(context)
            beats = take(node).messages
        node.step(Message(MessageType.HEARTBEAT_RESPONSE, 1, 3, term=1, context=beats[0].context))
        self.assertEqual(node.ready().read_states, [ReadState(1, b"1"), ReadState(1, b"2")])

    def test_read_of_a_follower_is_answered_by_message(self) -> None:
        """A follower that asked gets the index with its own context."""
        node = leader(1, 2, 3)
        node.step(Message(MessageType.READ_INDEX, 1, 3, entries=[Entry(0, 0, b"r")]))
        beats = take(node).messages
        node.step(Message(MessageType.HEARTBEAT_RESPONSE, 1, 2, term=1, context=beats[0].context))
        (answer,) = node.ready().messages
        self.assertEqual((answer.type, answer.to, answer.index), (MessageType.READ_INDEX_RESPONSE, 3, 1))
        self.assertEqual(answer.entries[0].data, b"r")

    def test_leader_without_a_quorum_steps_down(self) -> None:
        """Raft thesis §6.2: after an election timeout without answers it leads no more."""
        node = leader(1, 2, 3)
        for _ in range(20):
            node.tick()
        self.assertEqual((node.role, node.leader, node.term), (Role.FOLLOWER, 0, 1))

    def test_follower_with_a_leader_ignores_candidates(self) -> None:
        """Raft thesis §4.2.3: a member that was removed can not disturb the others; a hand-over is no disturbance."""
        node = make_node(1, 2, 3)
        node.step(Message(MessageType.HEARTBEAT, 1, 2, term=1))
        vote = Message(MessageType.VOTE, 1, 3, term=2)
        node.step(vote)
        self.assertEqual((node.term, node.leader), (1, 2))
        vote.context = b"CampaignTransfer"
        node.step(vote)
        self.assertEqual((node.term, node.leader), (2, 0))

    def test_hand_over_goes_to_one_that_has_the_log(self) -> None:
        """Raft thesis §3.10: no proposals meanwhile; the other one campaigns when it has all; time ends it."""
        node = leader(1, 2, 3)
        node.propose([b"a"])
        settle(node)
        node.transfer_leader(2)
        self.assertRaises(ProposalDropped, node.propose, [b"b"])
        self.assertEqual(node.transferee, 2)
        before = [message.type for ready in settle(node) for message in ready.messages]
        self.assertNotIn(MessageType.TIMEOUT_NOW, before)
        node.step(Message(MessageType.APPEND_RESPONSE, 1, 2, term=1, index=2))
        self.assertIn((MessageType.TIMEOUT_NOW, 2), kinds(take(node).messages))
        for _ in range(10):
            node.tick()
        self.assertEqual(node.transferee, 0)
        node.propose([b"b"])

    def test_second_change_waits_for_the_first(self) -> None:
        """Raft thesis §4.1: while a change is not applied, another one becomes an empty entry."""
        node = leader(1, 2, 3)
        for target in (4, 5):
            node.propose_conf_change(raft_pb2.ConfChange(id=1, type=raft_pb2.ConfChangeAddNode, node_id=target))
        kinds = [entry.type for entry in node.ready().entries]
        self.assertEqual(kinds, [EntryType.CONF_CHANGE, EntryType.NORMAL])

    def test_change_that_does_not_fit_changes_nothing(self) -> None:
        """Removing the last voter is refused, and the node goes on."""
        node = make_node(1)
        lead(node)
        remove = raft_pb2.ConfChange(id=1, type=raft_pb2.ConfChangeRemoveNode, node_id=1)
        self.assertRaises(ConfChangeError, node.apply_conf_change, remove)
        self.assertEqual(node.configuration.state, ConfState((1,)))

    def test_malformed_append_makes_no_hole(self) -> None:
        """Entries that do not follow each other are not Raft; the log stays as it is."""
        node = make_node(1, 2, 3)
        node.step(Message(MessageType.APPEND, 1, 2, term=1, entries=[Entry(1, 5, b"")]))
        node.step(Message(MessageType.APPEND, 1, 2, term=1, entries=[Entry(1, 1, b""), Entry(1, 3, b"")]))
        self.assertEqual(node.log.last_index, 0)

    def test_acknowledgement_of_what_was_never_sent(self) -> None:
        """A peer that claims entries beyond the log commits nothing."""
        node = leader(1, 2, 3)
        for peer in (2, 3):
            node.step(Message(MessageType.APPEND_RESPONSE, 1, peer, term=1, index=99))
        self.assertEqual(node.commit, 1)


class SnapshotTests(SynchronousTestCase):
    def test_snapshot_replaces_log_and_members(self) -> None:
        """Raft §7: a follower far behind takes the leader's state; it is durable before the answer leaves."""
        node = make_node(1, 2)
        snapshot = Snapshot(SnapshotMeta(10, 2, ConfState((1, 2, 3))), b"state")
        node.step(Message(MessageType.SNAPSHOT, 1, 2, term=2, snapshot=snapshot))
        ready = node.ready()
        self.assertEqual((ready.snapshot, ready.hard_state, ready.committed), (snapshot, HardState(2, 0, 10), ()))
        self.assertEqual([(m.type, m.index) for m in ready.responses], [(MessageType.APPEND_RESPONSE, 10)])
        self.assertEqual(node.applied, 0)
        node.advance(ready)
        self.assertEqual((node.applied, node.configuration.state), (10, ConfState((1, 2, 3))))
        self.assertFalse(node.has_ready())

    def test_snapshot_that_came_during_a_sync(self) -> None:
        """A change that was on its way to be applied does not undo the members of a later snapshot."""
        node = make_node(1, 2)
        change = raft_pb2.ConfChange(id=1, type=raft_pb2.ConfChangeAddNode, node_id=9)
        entry = Entry(1, 1, change.SerializeToString(), EntryType.CONF_CHANGE)
        node.step(Message(MessageType.APPEND, 1, 2, term=1, entries=[entry], commit=1))
        ready = node.ready()
        snapshot = Snapshot(SnapshotMeta(10, 1, ConfState((1, 2, 3))))
        node.step(Message(MessageType.SNAPSHOT, 1, 2, term=1, snapshot=snapshot))
        self.assertEqual(node.apply_conf_change(change), ConfState((1, 2, 9)))
        node.advance(ready)
        self.assertEqual(take(node).snapshot, snapshot)
        self.assertEqual((node.applied, node.configuration.state), (10, ConfState((1, 2, 3))))

    def test_snapshot_without_this_node_is_refused(self) -> None:
        """A state that does not know this node is not its cluster's."""
        node = make_node(1, 2)
        snapshot = Snapshot(SnapshotMeta(10, 1, ConfState((2, 3))))
        node.step(Message(MessageType.SNAPSHOT, 1, 2, term=1, snapshot=snapshot))
        ready = node.ready()
        self.assertIsNone(ready.snapshot)
        self.assertEqual([message.index for message in ready.responses], [0])
