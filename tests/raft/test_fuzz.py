"""A node among peers that say anything at all, and a driver that does what it likes: what holds at every moment."""

from __future__ import annotations

import contextlib  # not its suppress alone: trial has a meaning of its own for a module with that name
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.raft.nodes import as_read
from twistedkv.errors import InvariantError
from twistedkv.pb import raft_pb2
from twistedkv.raft.confchange import ConfChangeError, decode, encode
from twistedkv.raft.config import Config
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import (
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    Ready,
    Role,
    Snapshot,
    SnapshotMeta,
)
from twistedkv.raft.node import RaftNode
from twistedkv.raft.progress import ProgressState
from twistedkv.raft.wire import decode_message, encode_message

STRANGER = 9
HUGE = (1 << 64) - 1
KINDS = [
    raft_pb2.ConfChangeAddNode,
    raft_pb2.ConfChangeRemoveNode,
    raft_pb2.ConfChangeUpdateNode,
    raft_pb2.ConfChangeAddLearnerNode,
]
TRANSITIONS = [
    raft_pb2.ConfChangeTransitionAuto,
    raft_pb2.ConfChangeTransitionJointImplicit,
    raft_pb2.ConfChangeTransitionJointExplicit,
]


class Fuzz:
    """One node with a driver, and peers that say anything."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        pick = self.random.choice
        state = pick(
            [ConfState((1, 2, 3), (4,)), ConfState((1, 2, 3)), ConfState((2, 3), (1,)), ConfState((1,)), ConfState()]
        )
        options: dict[str, Any] = {
            "pre_vote": pick([True, False]),
            "check_quorum": pick([True, False]),
            "max_size_per_message_bytes": pick([0, 30, 1000]),
            "max_inflight": pick([1, 2, 100]),
            "max_inflight_bytes": pick([1000, 1 << 40]),
            "max_uncommitted_bytes": pick([5, 1 << 40]),
            "validate_conf_changes": pick([True, False]),
        }
        options["read_only_lease_based"] = options["check_quorum"] and pick([True, False])
        config = Config(id=1, random=Random(seed), election_ticks=3, **options)
        self.snapshot: Snapshot | None = None
        self.node = RaftNode(config, RaftLog(), HardState(), state, 0, take_snapshot=lambda: self.snapshot)
        self.ready: Ready | None = None
        self.is_stopped = False
        self.committed: dict[int, Entry] = {}
        self.granted: dict[int, int] = {}  # to whom the vote of a term went
        self.before = (0, 0, 0)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if self.is_stopped:
                return
            self.one()
            self.check()

    def one(self) -> None:
        node, pick = self.node, self.random.choice
        match self.random.choices(
            ["step", "reply", "tick", "ready", "advance", "unsynced", "request", "compact", "campaign"],
            [30, 30, 10, 20, 20, 3, 8, 2, 2],
        )[0]:
            case "step":
                self.step(self.any_message())
            case "reply":
                self.step(self.fitting_message())
            case "tick":
                node.tick()
            case "ready" if self.ready is None and node.has_ready():
                self.ready = node.ready()
                self.sent([*self.ready.messages])
            case "advance" if self.ready is not None:
                self.finish(self.ready)
            case "unsynced":
                self.sent([*node.take_unsynced()[0]])
            case "compact" if node.log.snapshot is None and self.ready is None:
                node.log.compact(node.applied)
                term = node.log.term(node.applied)
                if node.applied and node.configuration.voters:
                    self.snapshot = Snapshot(SnapshotMeta(node.applied, term, node.configuration.state))
            case "campaign":
                pick([node.campaign, node.forget_leader])()
            case "request":
                with contextlib.suppress(ProposalDropped):
                    pick([
                        lambda: node.propose([bytes(pick([0, 1, 50]))]),
                        lambda: node.read_index(b"12345678"),
                        lambda: node.transfer_leader(pick([0, 1, 2, 3, 4, 9])),
                        lambda: node.propose_conf_change(self.any_change()),
                        lambda: node.report_unreachable(pick([0, 1, 2, 3, 9])),
                        lambda: node.report_snapshot(pick([0, 1, 2, 3, 9]), failed=pick([True, False])),
                    ])()  # fmt: skip
            case _:
                pass

    def step(self, message: Message) -> None:
        try:
            self.node.step(message)
        except InvariantError:
            # The one thing that stops a member: a commit index of its leader's beyond what it has acknowledged.
            if message.type is not MessageType.HEARTBEAT or message.commit <= self.node.log.last_index:
                raise
            self.is_stopped = True

    def finish(self, ready: Ready) -> None:
        self.ready = None
        self.sent([*ready.responses])
        for entry in ready.committed:
            if entry.type is not EntryType.NORMAL:
                with contextlib.suppress(ConfChangeError, ValueError):  # what such a driver does is its own affair
                    self.node.apply_conf_change(decode(entry))
        self.node.advance(ready)

    def sent(self, messages: list[Message]) -> None:
        for message in messages:
            if decode_message(encode_message(message)) != as_read(message):
                raise AssertionError(f"{message} does not fit the wire")
            granted = message.type is MessageType.VOTE_RESPONSE and not message.reject
            if granted and self.granted.setdefault(message.term, message.to) != message.to:
                raise AssertionError(f"two votes in term {message.term}")

    def number(self, *usual: int) -> int:
        if self.random.random() < 0.01:
            return self.random.choice([1 << 32, HUGE])
        return self.random.choice([*usual, self.random.randrange(8)]) & HUGE

    def any_message(self) -> Message:
        node, pick = self.node, self.random.choice
        last, term = node.log.last_index, node.term
        entries = [self.any_entry() for _ in range(pick([0, 0, 1, 1, 2, 3]))]
        voters, learners, outgoing, next_ones = (
            tuple(sorted(self.random.sample([0, 1, 2, 3, 4], pick([0, 1, 2, 3])))) for _ in range(4)
        )
        state = ConfState(voters, learners, outgoing, next_ones, pick([True, False]))
        meta = SnapshotMeta(self.number(last, last + 1, last + 9), self.number(term, 1), state)
        message = Message(
            pick(list(MessageType)),
            pick([1, 1, 1, 2]),
            pick([0, 1, 2, 2, 3, 3, 4, STRANGER]),
            self.number(term, term, term, term + 1) if self.random.random() < 0.9 else 0,
            self.number(node.log.last_term, 1, term),
            self.number(last, node.commit, node.applied),
            entries,
            self.number(node.commit, last),
            pick([None, Snapshot(meta)]),
            pick([True, False, False]),
            self.number(last, node.commit),
            pick([b"", b"", b"CampaignTransfer", (1).to_bytes(8, "big"), b"x" * 8]),
        )
        return decode_message(encode_message(message))  # what a transport can bring

    def any_entry(self) -> Entry:
        pick, last = self.random.choice, self.node.log.last_index
        kind = pick([EntryType.NORMAL, EntryType.NORMAL, EntryType.CONF_CHANGE, EntryType.CONF_CHANGE_V2])
        data = pick([b"", b"data", b"\xff", encode(self.any_change()).data])
        return Entry(self.number(self.node.term, 1), self.number(last, last + 1, last + 2), data, kind)

    def any_change(self) -> raft_pb2.ConfChange | raft_pb2.ConfChangeV2:
        pick = self.random.choice
        if pick([True, False]):
            return raft_pb2.ConfChange(id=1, type=pick(KINDS), node_id=pick([0, 1, 2, 3, 4, 5]))
        singles = [
            raft_pb2.ConfChangeSingle(type=pick(KINDS), node_id=pick([0, 1, 2, 3, 4, 5]))
            for _ in range(pick([0, 1, 2]))
        ]
        return raft_pb2.ConfChangeV2(transition=pick(TRANSITIONS), changes=singles)

    def fitting_message(self) -> Message:
        """What gets the node further: an append, a vote, an acknowledgement."""
        node, pick = self.node, self.random.choice
        last, sender = node.log.last_index, pick([2, 3])
        term = min(max(node.term, 1), HUGE - 1)
        match node.role:
            case Role.LEADER:
                kind = pick([MessageType.APPEND_RESPONSE, MessageType.HEARTBEAT_RESPONSE])
                return Message(
                    kind, 1, sender, term, index=pick([last, max(last - 1, 0)]), context=(1).to_bytes(8, "big")
                )
            case Role.CANDIDATE:
                return Message(MessageType.VOTE_RESPONSE, 1, sender, term)
            case Role.PRE_CANDIDATE:
                return Message(MessageType.PRE_VOTE_RESPONSE, 1, sender, node.term + 1)
        sender, term = node.leader or sender, term + pick([0, 0, 0, 1])
        first = max(node.commit, last - pick([0, 0, 1, 2]))
        kinds = [EntryType.NORMAL, EntryType.NORMAL, EntryType.CONF_CHANGE]
        entries = [
            Entry(term, index, encode(self.any_change()).data if kind else b"d", kind)
            for index, kind in ((first + 1, pick(kinds)), (first + 2, pick(kinds)))
        ]
        commit = pick([0, first, first + 1, first + 2])
        log_term = node.log.term(first)
        return Message(MessageType.APPEND, 1, sender, term, log_term, first, entries, commit)

    def check(self) -> None:
        """What holds at every moment, whatever was said."""
        node = self.node
        log = node.log
        entries = log.slice(log.compacted + 1, log.last_index) if log.compacted < log.last_index else []
        terms = [log.compacted_term, *(entry.term for entry in entries), node.term]
        indexes = [entry.index for entry in entries]
        facts = {
            "in order": indexes == list(range(log.compacted + 1, log.last_index + 1)),
            "terms rise": terms == sorted(terms),
            "known": log.compacted <= log.committed <= log.last_index and log.stable <= log.last_index,
            "applied": log.applied <= log.committed and (log.snapshot is not None or log.compacted <= log.applied),
            "no way back": (node.term, log.committed, log.applied) >= self.before
            and log.committed >= self.before[1]
            and log.applied >= self.before[2],
            "members": node.configuration.is_possible or not node.configuration.members,
            "leads": (node.role is Role.LEADER) == (node.leader == 1 and node._leadership is not None),
            "windows": all(each.match < each.next for each in node.progress.values()),
            "acknowledged": node.role is not Role.LEADER
            or all(each.match <= log.last_index for each in node.progress.values()),
            "sent": node.role is not Role.LEADER
            or all(
                each.next <= log.last_index + 1 or each.state is ProgressState.SNAPSHOT
                for each in node.progress.values()
            ),
        }
        for entry in entries[: log.committed - log.compacted]:
            facts["committed for ever"] = self.committed.setdefault(entry.index, entry) == entry
        self.before = (node.term, log.committed, log.applied)
        if not all(facts.values()):
            raise AssertionError([fact for fact, holds in facts.items() if not holds])


class FuzzTests(SynchronousTestCase):
    @settings(max_examples=200, deadline=None)
    @given(st.integers(0, 1 << 32))
    def test_no_peer_breaks_a_node(self, seed: int) -> None:
        """Whatever others say, the log stays whole, what is committed stays, and one vote a term is cast."""
        Fuzz(seed).run(120)
