"""Raft's vocabulary: entries, persistent state, and what a node owes its driver. No rules in here.

The wire forms are raftpb's (``twistedkv/pb/raft.proto``); these values are what the pure core works on.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class EntryType(IntEnum):
    """raftpb.EntryType."""

    NORMAL = 0
    CONF_CHANGE = 1
    CONF_CHANGE_V2 = 2


class Entry(NamedTuple):
    """One log entry; ``data`` is opaque to Raft. A tuple, because one is made for every write."""

    term: int
    index: int
    data: bytes
    type: EntryType = EntryType.NORMAL


class HardState(NamedTuple):
    """What must be durable before anything else is said (Raft, figure 2). ``vote`` 0 is nobody."""

    term: int = 0
    vote: int = 0
    commit: int = 0


class ConfState(NamedTuple):
    """The members that count, as of one log index. Outgoing voters and the next learners exist in joint consensus only."""

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False


class SnapshotMeta(NamedTuple):
    """The point of the log that a snapshot of the state stands for."""

    index: int = 0
    term: int = 0
    conf_state: ConfState = ConfState()
