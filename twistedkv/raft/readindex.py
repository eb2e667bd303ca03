"""Linearizable reads without the log: a leader that a quorum still follows knows what is committed (Raft thesis §6.4).

The leader notes its commit index, asks everyone by a heartbeat whether it still leads, and once a quorum has said so, a
read may be served from any state that has applied that index. All reads of a turn share one such round. Each round has
a number of its own, which the heartbeats carry: an answer to a heartbeat before it proves nothing about it
(etcd-io/raft#397).

A leader that reads by lease asks with every heartbeat, whether anybody reads or not. From when a round began, those who
answered it elect nobody else for an election timeout (Raft thesis §6.4.1). etcd goes by its CheckQuorum instead, which
looks back twice as far (etcd-io/raft#166).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from twistedkv.raft.quorum import VoteResult, joint_vote

_NUMBER = struct.Struct(">Q")  # 8 bytes, big-endian, as etcd's


class ReadRequest(NamedTuple):
    """Who asks, and what for."""

    sender: int
    context: bytes


@dataclass(slots=True)
class _Round:
    number: int
    index: int  # committed when the round began
    tick: int  # when it did
    requests: list[ReadRequest]
    acknowledged: dict[int, bool] = field(default_factory=dict)


class ReadIndex:
    """The reads that a leader has not answered yet. It lives for one term: rounds of another do not count."""

    def __init__(self) -> None:
        self.waiting: list[ReadRequest] = []  # for a round to begin
        self.confirmed_tick: int | None = None  # when the newest round began that a quorum has confirmed
        self._rounds = deque[_Round]()
        self._number = 0

    def begin(self, committed: int, tick: int) -> None:
        """Begin a round for all that wait, at the leader's ``tick``."""
        self._number += 1
        self._rounds.append(_Round(self._number, committed, tick, self.waiting))
        self.waiting = []

    @property
    def context(self) -> bytes:
        """What heartbeats carry now: the number of the last round that is not answered; empty if there is none."""
        return _NUMBER.pack(self._rounds[-1].number) if self._rounds else b""

    def acknowledge(
        self, sender: int, context: bytes, myself: int, voters: Collection[int], outgoing: Collection[int]
    ) -> list[tuple[int, list[ReadRequest]]]:
        """Note a heartbeat's answer; returns index and requests of each round that a quorum has confirmed now.

        An answer to a later round confirms the earlier ones too: who followed then did so before.
        """
        if len(context) != _NUMBER.size:
            return []
        (number,) = _NUMBER.unpack(context)
        if number > self._number:
            return []  # nobody was asked that
        done = 0
        for position, pending in enumerate(self._rounds):
            if pending.number <= number:
                pending.acknowledged[sender] = True
                if joint_vote(voters, outgoing, pending.acknowledged | {myself: True}) is VoteResult.WON:
                    done = position + 1
        confirmed = [self._rounds.popleft() for _ in range(done)]
        if confirmed:
            self.confirmed_tick = confirmed[-1].tick
        return [(pending.index, pending.requests) for pending in confirmed]
