"""What a majority of voters has acknowledged or voted, also while two configurations count at once.

In joint consensus a decision needs a majority of the incoming and one of the outgoing voters (Raft §6). A configuration
without voters agrees to everything, so that a plain one is a joint one with an empty second half.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from enum import Enum

EVERYTHING = (1 << 64) - 1  # what a configuration without voters has committed


class VoteResult(Enum):
    """What the votes so far come to."""

    PENDING = "pending"  # neither is out of reach
    LOST = "lost"
    WON = "won"


def majority_committed(voters: Collection[int], acknowledged: Callable[[int], int]) -> int:
    """The highest index that a majority of ``voters`` has acknowledged (Raft §5.3), 0 for one that said nothing."""
    if not voters:
        return EVERYTHING
    indexes = sorted(map(acknowledged, voters))
    return indexes[(len(indexes) - 1) // 2]  # as many as a majority are at or above it


def joint_committed(incoming: Collection[int], outgoing: Collection[int], acknowledged: Callable[[int], int]) -> int:
    """The highest index that majorities of both halves have acknowledged (Raft §6)."""
    committed = majority_committed(incoming, acknowledged)
    return min(committed, majority_committed(outgoing, acknowledged)) if outgoing else committed


def majority_vote(voters: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    """Whether a majority of ``voters`` said yes, or can not say it any more; ``votes`` has no silent ones."""
    if not voters:
        return VoteResult.WON
    needed = len(voters) // 2 + 1
    granted = silent = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote:
            granted += 1
        elif vote is None:
            silent += 1
    if granted >= needed:
        return VoteResult.WON
    return VoteResult.PENDING if granted + silent >= needed else VoteResult.LOST


def joint_vote(incoming: Collection[int], outgoing: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    """Won in both halves, or lost in one (Raft §6)."""
    results = majority_vote(incoming, votes), majority_vote(outgoing, votes)
    if VoteResult.LOST in results:
        return VoteResult.LOST
    return VoteResult.PENDING if VoteResult.PENDING in results else VoteResult.WON
