"""What goes between a member and the others, by a member of three whose peers are not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.nopeers import NoPeers
from tests.station import Station
from tests.wires import founder
from twistedkv.errors import RemovedError
from twistedkv.members import MemberInfo, Membership
from twistedkv.pb.raft_pb2 import (
    ConfChange,
    ConfChangeAddLearnerNode,
    ConfChangeAddNode,
    ConfChangeRemoveNode,
    ConfChangeSingle,
    ConfChangeUpdateNode,
    ConfChangeV2,
)
from twistedkv.protocols.receiver import Receiver
from twistedkv.raft import confchange
from twistedkv.raft.messages import Entry, Message, MessageType, Snapshot, SnapshotMeta
from twistedkv.raft.progress import ProgressState
from twistedkv.replication import Replication

ME = 1


class Peers(NoPeers):
    """Reaches nobody, minds URLs that are none, and may say at once that a message was lost."""

    def __init__(self, receiver: Receiver) -> None:
        super().__init__(receiver)
        self.loses = False

    def set_peer(self, member_id: int, urls: Sequence[str]) -> None:
        if not all(url.startswith("http") for url in urls):
            raise ValueError("no URL")
        super().set_peer(member_id, urls)

    def send(self, messages: Sequence[Message]) -> None:
        super().send(messages)
        for message in messages if self.loses else ():
            self.receiver.unreachable(message.to)


class ReplicationCase(SynchronousTestCase):
    """Member 1 of 1, 2 and 3."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.station = Station(ME, Path(self.mktemp()), [founder(each) for each in (1, 2, 3)])
        self.member = self.station.open(self.clock, Peers)
        self.replication: Replication = self.member._replication
        peers = self.member.peers
        assert isinstance(peers, Peers)
        self.peers = peers
        self.member.start()
        self.clock.advance(0)

    def tearDown(self) -> None:
        if not self.member.stopped:
            self.successResultOf(Deferred.fromCoroutine(self.member.stop()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def lead(self) -> None:
        """Have member 1 lead, with an entry of its term committed."""
        self.station.elect(self.clock)
        self.station.acknowledge(self.clock)
        self.peers.sent.clear()

    def commit(self, change: ConfChange | ConfChangeV2) -> None:
        """Propose a change as the leader, and have it committed."""
        self.member._node.propose_conf_change(change)
        self.member.stirred()
        self.clock.advance(0)
        self.station.acknowledge(self.clock)

    def taken(self) -> list[MessageType]:
        """The types of what was sent since the last call."""
        types = [message.type for message in self.peers.sent]
        self.peers.sent.clear()
        return types


class SendingTests(ReplicationCase):
    """What Raft says."""

    def test_all_others_are_talked_to(self) -> None:
        """A member talks to all members of its cluster but itself, by their peer URLs."""
        self.assertEqual(self.peers.urls, {each: founder(each).peer_urls for each in (2, 3)})

    def test_a_loss_that_is_told_while_sending(self) -> None:
        """A message that cannot leave is told from within the sending; the leader then probes before it sends more."""
        self.lead()
        progress = self.member.progress[2]
        self.assertIs(progress.state, ProgressState.REPLICATE)
        self.peers.loses = True
        self.station.put(b"k")
        self.clock.advance(0)
        self.assertIs(progress.state, ProgressState.PROBE)
        self.peers.loses = False
        self.station.acknowledge(self.clock)
        self.assertEqual(self.station.failures, [])

    def test_appends_that_say_no_more_than_the_next(self) -> None:
        """Of several appends to a member in a turn, an empty one is left out if the next begins where it does."""
        empty = Message(MessageType.APPEND, 2, index=5, log_term=2, term=2, commit=5)
        full = Message(MessageType.APPEND, 2, index=5, log_term=2, term=2, commit=5, entries=(Entry(2, 6, b"a"),))
        after = Message(MessageType.APPEND, 2, index=6, log_term=2, term=2, commit=5)
        other = Message(MessageType.APPEND, 3, index=5, log_term=2, term=2, commit=5)
        beat = Message(MessageType.HEARTBEAT, 2, term=2)
        self.peers.sent.clear()
        self.replication.send([empty, other, beat, full, after])
        self.assertEqual(self.peers.sent, [full, other, beat, after])
        self.peers.sent.clear()
        self.replication.send([full, after, beat, other])
        self.assertEqual(self.peers.sent, [full, after, beat, other])

    def test_snapshots_go_by_themselves(self) -> None:
        """A snapshot that Raft asks for is made first; what else there is to say goes out at once."""
        self.lead()
        snapshot = Message(
            MessageType.SNAPSHOT, 2, sender=ME, term=self.member.term, snapshot=Snapshot(SnapshotMeta(3, 2))
        )
        beat = Message(MessageType.HEARTBEAT, 2, sender=ME, term=self.member.term)
        worker = self.station.slow_database()
        self.replication.send([snapshot, beat])
        self.assertEqual(self.peers.sent, [beat])
        worker.release()
        self.assertEqual(self.peers.sent, [beat, snapshot])
        assert snapshot.snapshot is not None
        self.assertEqual(snapshot.snapshot.meta.index, self.member.applied)
        self.replication.snapshot_sent(2, ok=True)

    def test_the_log_waits_for_whoever_has_a_snapshot(self) -> None:
        """A member that has got a snapshot finds what follows it in the log for half a minute, and one whose snapshot
        was lost does not keep anything."""
        self.lead()
        keeper = self.member._keeper
        for ok, kept in ((True, True), (False, False)):
            self.replication.send([Message(MessageType.SNAPSHOT, 2, sender=ME, term=self.member.term)])
            self.replication.snapshot_sent(2, ok=ok)
            keeper.look(3, self.member._describe)
            self.assertEqual(bool(keeper._holders), kept)
            self.member.reactor.callLater(0, lambda: None)
            for _ in range(320):
                self.clock.advance(0.1)
                for sender in (2, 3):
                    beat = Message(MessageType.HEARTBEAT_RESPONSE, ME, sender=sender, term=self.member.term)
                    self.replication.received(beat)
            self.assertFalse(keeper._holders)

    def test_a_snapshot_that_is_of_no_use(self) -> None:
        """Another term, a member that is gone, or an end make a snapshot useless."""
        self.lead()
        message = Message(MessageType.SNAPSHOT, 2, term=self.member.term)
        self.assertTrue(self.replication.wants_snapshot(message))
        self.assertFalse(self.replication.wants_snapshot(Message(MessageType.SNAPSHOT, 9, term=self.member.term)))
        self.assertFalse(self.replication.wants_snapshot(Message(MessageType.SNAPSHOT, 2, term=1)))
        self.member.leave()
        self.assertFalse(self.replication.wants_snapshot(message))

    def test_what_becomes_of_a_snapshot(self) -> None:
        """Raft hears whether a snapshot was delivered, and sends on from there, or sends another one."""
        self.lead()
        progress = self.member.progress[2]
        for ok, next_index in ((False, progress.match + 1), (True, 51)):
            progress.become_snapshot(50)
            self.replication.snapshot_sent(2, ok=ok)
            self.assertEqual((progress.state, progress.next), (ProgressState.PROBE, next_index))
        progress.become_snapshot(50)
        self.replication.snapshot_failed(2)
        self.assertEqual((progress.state, progress.next), (ProgressState.PROBE, progress.match + 1))


class CommittedTests(ReplicationCase):
    """Changes of the members, from the moment when they are committed."""

    def test_a_member_comes_moves_and_goes(self) -> None:
        """A new member is talked to as soon as it is committed, by its new URLs when it moves, and not when it left."""
        self.lead()
        self.commit(ConfChange(type=ConfChangeAddNode, node_id=4, context=founder(4).to_json()))
        self.assertEqual(self.peers.urls[4], founder(4).peer_urls)
        self.assertIn(4, self.member.progress)
        moved = MemberInfo(4, ("http://198.51.100.4:2380",))
        self.commit(ConfChange(type=ConfChangeUpdateNode, node_id=4, context=moved.to_json()))
        self.station.acknowledge(self.clock, 3)
        self.assertEqual(self.peers.urls[4], moved.peer_urls)
        self.commit(ConfChange(type=ConfChangeRemoveNode, node_id=4))
        self.station.acknowledge(self.clock, 3)
        self.assertNotIn(4, self.peers.urls)
        self.assertNotIn(4, self.member.progress)
        self.assertTrue(self.replication.is_removed(4))
        self.assertFalse(self.replication.is_removed(3))
        self.assertEqual(self.replication.committed.members.keys(), self.member.membership.members.keys())

    def test_a_change_that_does_not_fit(self) -> None:
        """A change that does not fit the members changes nothing for Raft either."""
        self.lead()
        before = self.member._node.configuration
        self.commit(ConfChange(type=ConfChangeRemoveNode, node_id=9))
        self.commit(ConfChange(type=ConfChangeAddNode, node_id=9, context=b"{}"))
        self.assertEqual(self.member._node.configuration, before)
        self.assertFalse(self.member._node.change_is_pending)
        self.assertEqual(len(self.member.membership.members), 3)

    def test_a_joint_change_is_rafts_affair(self) -> None:
        """A change in the form that says nothing of URLs changes who votes, and no list of members."""
        self.lead()
        single = ConfChangeSingle(type=ConfChangeAddLearnerNode, node_id=9)
        self.commit(ConfChangeV2(changes=[single]))
        self.assertIn(9, self.member._node.configuration.learners)
        self.assertNotIn(9, self.member.membership.members)
        self.assertEqual(self.station.failures, [])

    def test_urls_that_nobody_can_dial(self) -> None:
        """A member whose URLs are none stays a member: it is told to the operator, and nothing stops for it."""
        self.lead()
        strange = MemberInfo(4, ("carrier-pigeon",))
        self.commit(ConfChange(type=ConfChangeAddLearnerNode, node_id=4, context=strange.to_json()))
        self.assertIn(4, self.member.membership.members)
        self.assertNotIn(4, self.peers.urls)
        self.assertEqual(self.station.failures, [])

    def test_a_committed_change_counts_before_it_is_applied(self) -> None:
        """What others are told and who is refused follows the log at once, whatever the state waits for."""
        change = ConfChange(type=ConfChangeRemoveNode, node_id=3)
        encoded = confchange.encode(change)
        self.replication.members_committed(Entry(2, 9, encoded.data, encoded.type))
        self.assertTrue(self.replication.is_removed(3))
        self.assertNotIn(3, self.peers.urls)
        self.assertIn(3, self.member.membership.members)

    def test_a_snapshot_brings_other_members(self) -> None:
        """With the state of a snapshot come its members: who is gone is talked to no more, who moved is by new URLs."""
        moved = MemberInfo(2, ("http://198.51.100.2:2380",))
        members = {1: founder(1), 2: moved, 5: founder(5)}
        self.member.membership.restore(Membership(members, [3, 4]))
        self.replication.restored()
        self.assertEqual(self.peers.urls, {2: moved.peer_urls, 5: founder(5).peer_urls})
        self.assertTrue(self.replication.is_removed(4))
        self.assertIsNot(self.replication.committed.members, self.member.membership.members)

    def test_a_snapshot_brings_others_urls_while_one_is_sent(self) -> None:
        """What was on its way to a member's old URLs, from the time when this one led, is given up."""
        self.lead()
        message = Message(MessageType.SNAPSHOT, 2, sender=ME, term=self.member.term)
        self.replication.send([message])
        self.assertIn(message, self.peers.sent)
        moved = MemberInfo(2, ("http://198.51.100.2:2380",))
        self.member.membership.restore(Membership({1: founder(1), 2: moved, 3: founder(3)}))
        self.replication.restored()
        self.peers.sent.clear()
        self.replication.send([message])
        self.assertIn(message, self.peers.sent)
        self.replication.snapshot_sent(2, ok=False)


class ReceivingTests(ReplicationCase):
    """What the transport says."""

    def test_messages_go_to_raft(self) -> None:
        """A message from another member is given to Raft, which answers it at the end of the turn."""
        self.replication.received(Message(MessageType.HEARTBEAT, ME, sender=2, term=2))
        self.assertEqual(self.member.leader, 2)
        self.taken()
        self.clock.advance(0)
        self.assertEqual(self.taken(), [MessageType.HEARTBEAT_RESPONSE])

    def test_removed(self) -> None:
        """A member that others call removed stops, and says why."""
        self.replication.removed()
        self.replication.removed()
        self.assertEqual([type(each) for each in self.station.failures], [RemovedError])
        self.assertTrue(self.member.stopped)

    def test_after_the_end_nothing_is_heard(self) -> None:
        """Messages, losses and ends of snapshots that come after the end change nothing and leave nothing."""
        self.lead()
        self.member.leave()
        before = self.member._node.progress[2].state
        self.replication.received(Message(MessageType.HEARTBEAT, ME, sender=2, term=9))
        self.replication.unreachable(2)
        self.replication.snapshot_sent(2, ok=True)
        self.assertEqual(self.member.term, 2)
        self.assertIs(self.member._node.progress[2].state, before)

    def test_what_others_ask(self) -> None:
        """The members and versions are given as etcd gives them."""
        self.assertEqual(
            self.replication.members_json(),
            b'[{"id":1,"peerURLs":["http://192.0.2.1:2380"],"name":"m1"},'
            b'{"id":2,"peerURLs":["http://192.0.2.2:2380"],"name":"m2"},'
            b'{"id":3,"peerURLs":["http://192.0.2.3:2380"],"name":"m3"}]\n',
        )
        self.assertEqual(self.replication.version_json(), b'{"etcdserver":"3.5.1","etcdcluster":"not_decided"}')
