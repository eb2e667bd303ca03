"""Raft's vocabulary: entries, persistent state, and what a node owes its driver. No rules in here.

The wire forms are raftpb's (``twistedkv/pb/raft.proto``); these values are what the pure core works on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple


class EntryType(IntEnum):
    """raftpb.EntryType."""

    NORMAL = 0
    CONF_CHANGE = 1
    CONF_CHANGE_V2 = 2


class Entry(NamedTuple):
    """One log entry; ``data`` is opaque to Raft. A tuple, because one is made for every write."""

    term: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    data: bytes
    type: EntryType = EntryType.NORMAL


class HardState(NamedTuple):
    """What must be durable before anything else is said (Raft, figure 2). ``vote`` 0 is nobody."""

    term: int = 0
    vote: int = 0
    commit: int = 0


class ConfState(NamedTuple):
    """The members that count, as of one log index. Joint consensus alone has outgoing voters and next learners."""

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False


class SnapshotMeta(NamedTuple):
    """The point of the log that a snapshot of the state stands for."""

    index: int = 0  # type: ignore[assignment]  # hides tuple.index
    term: int = 0
    conf_state: ConfState = ConfState()


class MessageType(IntEnum):
    """raftpb.MessageType, as far as members say it to each other."""

    PROPOSE = 2
    APPEND = 3
    APPEND_RESPONSE = 4
    VOTE = 5
    VOTE_RESPONSE = 6
    SNAPSHOT = 7
    HEARTBEAT = 8
    HEARTBEAT_RESPONSE = 9
    TRANSFER_LEADER = 13
    TIMEOUT_NOW = 14
    READ_INDEX = 15
    READ_INDEX_RESPONSE = 16
    PRE_VOTE = 17
    PRE_VOTE_RESPONSE = 18


class Snapshot(NamedTuple):
    """A state, and the point of the log that it stands for. What is in ``data`` is the driver's affair."""

    meta: SnapshotMeta
    data: bytes = b""


@dataclass(slots=True)
class Message:
    """raftpb.Message. Frozen by agreement: one is made for every batch sent, and a frozen class costs twice as much."""

    type: MessageType
    to: int
    sender: int = 0
    term: int = 0  # 0 in what is forwarded to the leader, which may have moved on
    log_term: int = 0  # of the entry at index
    index: int = 0
    entries: Sequence[Entry] = ()
    commit: int = 0
    snapshot: Snapshot | None = None
    reject: bool = False
    reject_hint: int = 0
    context: bytes = b""


class Role(Enum):
    """What a node is in its term (Raft §5.1); a learner is a follower that does not vote."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class SoftState(NamedTuple):
    """What need not be durable. ``leader`` 0 is nobody."""

    leader: int
    role: Role


class ReadState(NamedTuple):
    """A read of :meth:`~twistedkv.raft.node.RaftNode.read_index` may be served once ``index`` is applied."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    context: bytes


class Ready(NamedTuple):
    """What a node owes its driver, see :meth:`~twistedkv.raft.node.RaftNode.ready`."""

    soft_state: SoftState | None  # None: as before
    hard_state: HardState | None  # None: as before
    entries: Sequence[Entry]  # to persist
    snapshot: Snapshot | None  # to install, instead of all of the log before
    committed: Sequence[Entry]  # to apply, after entries are durable
    messages: Sequence[Message]  # to send at once, at the same time as the disk works (Raft thesis §10.2.1)
    responses: Sequence[Message]  # to send after entries and hard_state are durable
    read_states: Sequence[ReadState]
    must_sync: bool  # hard_state or entries need a sync; a new commit index alone does not


class ProposalDropped(Exception):
    """Nobody can take the proposal now: there is no leader, it is handing over, or this node counts no more."""
