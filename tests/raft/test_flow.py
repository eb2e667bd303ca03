"""How much is on its way: to one member, in the uncommitted end of the log, in one message to the leader."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.raft.nodes import acknowledge, change, follower, leader, make_node, sent_in, settle
from twistedkv.pb import raft_pb2
from twistedkv.raft.config import Config
from twistedkv.raft.log import ENTRY_OVERHEAD_BYTES
from twistedkv.raft.messages import Entry, EntryType, Message, MessageType, ProposalDropped, Role
from twistedkv.raft.progress import Progress


def replicating(max_inflight: int, max_inflight_bytes: int) -> Progress:
    progress = Progress(1, max_inflight, max_inflight_bytes)
    progress.become_replicate()
    return progress


def appends(messages: list[Message], to: int) -> list[list[bytes]]:
    """The data in each append to a member."""
    return [[e.data for e in m.entries] for m in messages if m.type is MessageType.APPEND and m.to == to]


class ConfigTests(SynchronousTestCase):
    def test_impossible_limits_are_refused(self) -> None:
        """The window must have room for one message (etcd raft.go, Config.validate)."""
        for wrong in ({"max_inflight_bytes": 1000}, {"max_inflight_bytes": 0, "max_size_per_message_bytes": 0}):
            self.assertRaises(ValueError, lambda wrong=wrong: Config(id=1, random=Random(1), **wrong))
        Config(id=1, random=Random(1), max_inflight_bytes=1000, max_size_per_message_bytes=1000)


class WindowTests(SynchronousTestCase):
    """etcd raft/tracker/inflights.go."""

    def test_either_limit_fills_the_window(self) -> None:
        """A window is full by the number of appends or by their bytes, whichever comes first."""
        by_number, by_bytes = replicating(2, 1000), replicating(100, 1000)
        for progress, sizes in ((by_number, (1, 1)), (by_bytes, (999, 1))):
            self.assertFalse(progress.is_window_full)
            for index, size in enumerate(sizes, 1):
                self.assertFalse(progress.is_paused)
                progress.sent_entries(index, size)
            self.assertTrue(progress.is_window_full)
            self.assertTrue(progress.is_paused)
            self.assertIn("inflight=2[full]", progress.describe(False))

    def test_one_append_may_be_larger(self) -> None:
        """What is on its way may exceed the bytes by one append, or nothing large would ever go."""
        progress = replicating(100, 1000)
        progress.sent_entries(1, 999)
        self.assertFalse(progress.is_window_full)
        progress.sent_entries(2, 5000)
        self.assertEqual((progress.inflight_bytes, progress.is_window_full), (5999, True))
        progress.free_inflight(1)
        self.assertTrue(progress.is_window_full)
        progress.free_inflight(2)
        self.assertEqual((progress.inflight_bytes, progress.is_window_full), (0, False))

    def test_every_state_begins_with_an_empty_window(self) -> None:
        """What was on its way is forgotten when the member is probed again."""
        progress = replicating(100, 1000)
        progress.sent_entries(1, 2000)
        progress.become_probe()
        progress.become_replicate()
        self.assertEqual((progress.inflight_bytes, progress.is_window_full), (0, False))

    @given(
        st.integers(1, 5),
        st.integers(1, 50),
        st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=30),
    )
    def test_window_is_what_was_sent_and_not_acknowledged(
        self, most: int, most_bytes: int, steps: list[tuple[bool, int]]
    ) -> None:
        """However appends and answers follow each other, the window holds exactly the appends between them."""
        progress, model, last = replicating(most, most_bytes), dict[int, int](), 0
        for is_append, number in steps:
            if is_append:
                last += 1
                progress.sent_entries(last, number)
                model[last] = number
            else:
                progress.free_inflight(number)
                model = {index: size for index, size in model.items() if index > number}
            self.assertEqual(list(progress.inflight), list(model.items()))
            self.assertEqual(progress.inflight_bytes, sum(model.values()))
            self.assertEqual(progress.is_window_full, len(model) >= most or sum(model.values()) >= most_bytes)

    def test_leader_stops_at_the_limit_and_goes_on(self) -> None:
        """A leader sends a slow member so many bytes, then waits for its answers; the others are not held up."""
        node = leader(1, 2, 3, max_size_per_message_bytes=100, max_inflight_bytes=250)
        for number in range(6):
            node.propose([bytes([number]) * 100])
            acknowledge(node, 3, node.log.last_index)
        sent = sent_in(settle(node))
        self.assertEqual([len(data) for data in appends(sent, 3) if data], [1] * 6)
        self.assertEqual([data[0][0] for data in appends(sent, 2) if data], [0, 1, 2])
        self.assertEqual(node.progress[2].inflight_bytes, 300)
        acknowledge(node, 2, 3)  # the first two
        sent = sent_in(settle(node))
        self.assertEqual([data[0][0] for data in appends(sent, 2) if data], [3, 4])

    def test_without_a_limit_nobody_counts(self) -> None:
        """Without a limit in bytes only the number of appends counts."""
        node = leader(1, 2, 3)
        node.propose([bytes(100)])
        self.assertEqual((len(node.progress[2].inflight), node.progress[2].inflight_bytes), (1, 0))


class UncommittedTests(SynchronousTestCase):
    """etcd raft.go, MaxUncommittedEntriesSize."""

    def test_proposals_stop_at_the_limit(self) -> None:
        """A leader whose followers do not answer takes so many bytes and no more; the log is as it was then."""
        node = leader(1, 2, 3, max_uncommitted_bytes=1000)
        node.propose([bytes(600), bytes(300)])
        before = node.log.last_index
        self.assertRaises(ProposalDropped, node.propose, [bytes(101)])
        self.assertRaises(ProposalDropped, node.propose, [b"", bytes(101)])
        self.assertEqual(node.log.last_index, before)
        node.propose([bytes(100)])
        self.assertRaises(ProposalDropped, node.propose, [b"1"])

    def test_what_was_handed_on_makes_room(self) -> None:
        """Once entries are committed and the driver has them, as much may be proposed again."""
        node = leader(1, 2, 3, max_uncommitted_bytes=1000)
        node.propose([bytes(500)])
        node.propose([bytes(500)])
        settle(node)
        acknowledge(node, 2, 2)
        self.assertRaises(ProposalDropped, node.propose, [bytes(500)])
        settle(node)
        node.propose([bytes(500)])
        self.assertRaises(ProposalDropped, node.propose, [b"1"])

    def test_one_proposal_is_taken_whatever_its_size(self) -> None:
        """With nothing on its way a proposal is never too large, or it could never be made."""
        node = leader(1, 2, 3, max_uncommitted_bytes=1000)
        node.propose([bytes(5000)])
        self.assertRaises(ProposalDropped, node.propose, [b"1"])
        settle(node)
        acknowledge(node, 3, 2)
        settle(node)
        node.propose([bytes(5000)])

    def test_empty_entries_are_always_taken(self) -> None:
        """A joint state ends, and a new term begins, however much is on its way."""
        node = leader(1, 2, 3, max_uncommitted_bytes=1)
        node.propose([bytes(10)])
        node.propose([b""])
        node.propose_conf_change(raft_pb2.ConfChangeV2())
        self.assertEqual([len(e.data) for e in settle(node)[0].entries], [10, 0, 0])

    def test_new_leader_counts_its_own_entries(self) -> None:
        """What an earlier leader left uncommitted is not this one's, and makes no room when it commits."""
        node = make_node(1, 2, 3, pre_vote=False, max_uncommitted_bytes=100)
        old = [Entry(1, index, bytes(90)) for index in (1, 2)]
        node.step(Message(MessageType.APPEND, 1, 2, term=1, entries=old))
        settle(node)
        node.campaign()
        settle(node)
        node.step(Message(MessageType.VOTE_RESPONSE, 1, 3, term=2))
        settle(node)
        self.assertIs(node.role, Role.LEADER)
        node.propose([bytes(60)])
        acknowledge(node, 3, 3)
        settle(node)
        self.assertEqual((node.applied, node.log.last_index), (3, 4))
        self.assertRaises(ProposalDropped, node.propose, [bytes(60)])

    def test_refused_change_is_none(self) -> None:
        """A change of the members that found no room does not stand in the way of the next one."""
        node = leader(1, 2, 3, max_uncommitted_bytes=10)
        node.propose([bytes(10)])
        add = change(raft_pb2.ConfChangeAddNode, 4)
        self.assertRaises(ProposalDropped, node.propose_conf_change, add)
        self.assertFalse(node.change_is_pending)
        settle(node)
        acknowledge(node, 2, 2)
        settle(node)
        node.propose_conf_change(add)
        self.assertTrue(node.change_is_pending)
        self.assertIs(node.ready().entries[0].type, EntryType.CONF_CHANGE)

    def test_refused_proposal_of_a_follower_is_dropped(self) -> None:
        """A follower's proposal that the leader can not take is lost; its client runs into a time-out."""
        node = leader(1, 2, 3, max_uncommitted_bytes=10)
        node.propose([bytes(10)])
        node.step(Message(MessageType.PROPOSE, 1, 2, entries=[Entry(0, 0, b"late")]))
        self.assertEqual(node.log.last_index, 2)


class ForwardTests(SynchronousTestCase):
    def forwarded(self, limit_bytes: int, sizes: list[int]) -> list[list[int]]:
        node = follower(1, 2, 3, max_size_per_message_bytes=limit_bytes)
        node.propose([bytes([number]) * size for number, size in enumerate(sizes)])
        messages = sent_in(settle(node))
        self.assertEqual({(m.type, m.to, m.term) for m in messages}, {(MessageType.PROPOSE, 2, 0)})
        data = [entry.data for message in messages for entry in message.entries]
        self.assertEqual(data, [bytes([number]) * size for number, size in enumerate(sizes)])
        return [[len(entry.data) for entry in message.entries] for message in messages]

    def test_proposals_go_in_messages_of_limited_size(self) -> None:
        """A follower with a large batch sends the leader several messages, in order, of one entry at least."""
        each = 100 + ENTRY_OVERHEAD_BYTES
        self.assertEqual(self.forwarded(2 * each, [100] * 5), [[100, 100], [100, 100], [100]])
        self.assertEqual(self.forwarded(2 * each, [500, 100, 100, 500]), [[500], [100, 100], [500]])
        self.assertEqual(self.forwarded(0, [1, 1]), [[1], [1]])
        self.assertEqual(self.forwarded(1000, [1, 1]), [[1, 1]])

    @given(st.integers(0, 200), st.lists(st.integers(0, 100), min_size=1, max_size=10))
    def test_no_message_could_take_one_more(self, limit_bytes: int, sizes: list[int]) -> None:
        """Messages are as few as the limit allows, and only a single entry exceeds it."""
        messages = self.forwarded(limit_bytes, sizes)
        totals = [sum(size + ENTRY_OVERHEAD_BYTES for size in message) for message in messages]
        for message, total, following in zip(messages, totals, [*messages[1:], None], strict=True):
            self.assertTrue(total <= limit_bytes or len(message) == 1)
            if following is not None:
                self.assertGreater(total + following[0] + ENTRY_OVERHEAD_BYTES, limit_bytes)
