"""One member as the leader sees it: how much of the log it has, and how much may be on its way to it.

Three states (Raft thesis §10.2.1 on pipelining; etcd raft/tracker/progress.go):

* *probe*: where its log meets the leader's is not known; one append at a time, the next after an answer.
* *replicate*: it is known; appends follow each other without waiting, up to the in-flight window.
* *snapshot*: it needs entries that are compacted; nothing is sent until it reports the snapshot.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final

from twistedkv.raft.log import NO_LIMIT


class ProgressState(Enum):
    """How a leader sends to a member."""

    PROBE = "StateProbe"
    REPLICATE = "StateReplicate"
    SNAPSHOT = "StateSnapshot"


_REPLICATE: Final = ProgressState.REPLICATE  # a name of the module is found ten times as fast
_SNAPSHOT: Final = ProgressState.SNAPSHOT


class Progress:
    """What a leader knows of one member, itself included.

    ``match`` is the highest index known to be in its log, durable; ``next`` the first one that was not sent to it yet.
    """

    __slots__ = (
        "inflight",
        "inflight_bytes",
        "is_paused_by_probe",
        "match",
        "max_inflight",
        "max_inflight_bytes",
        "next",
        "pending_snapshot",
        "recent_active",
        "sent_commit",
        "state",
    )

    def __init__(self, next_index: int, max_inflight: int, max_inflight_bytes: int = NO_LIMIT) -> None:
        self.state = ProgressState.PROBE
        self.match = 0
        self.next = next_index  # match < next
        self.sent_commit = 0  # the highest commit index it was told
        self.pending_snapshot = 0  # index of the snapshot that it is being sent; in state SNAPSHOT only
        self.recent_active = False  # something came from it since the last CheckQuorum
        self.is_paused_by_probe = False  # the one append of a probe is on its way; or, replicating, the window is full
        self.max_inflight = max_inflight
        self.max_inflight_bytes = max_inflight_bytes
        # Last index and bytes of each append that was not acknowledged; in state REPLICATE only.
        self.inflight = deque[tuple[int, int]]()
        self.inflight_bytes = 0  # of all of them

    def become_probe(self) -> None:
        """Find out again where its log meets ours; what an earlier snapshot brought it is known to be there."""
        next_index = self.match + 1
        if self.state is ProgressState.SNAPSHOT:
            next_index = max(next_index, self.pending_snapshot + 1)
        self._enter(ProgressState.PROBE)
        self.next = next_index
        self.sent_commit = min(self.sent_commit, self.next - 1)

    def become_replicate(self) -> None:
        """Its log is known to meet ours at ``match``."""
        self._enter(ProgressState.REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: int) -> None:
        """It is being sent a snapshot at ``index``."""
        self._enter(ProgressState.SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1
        self.sent_commit = index

    def _enter(self, state: ProgressState) -> None:
        self.state = state
        self.is_paused_by_probe = False
        self.pending_snapshot = 0
        self.inflight.clear()
        self.inflight_bytes = 0

    @property
    def is_paused(self) -> bool:
        """Whether it gets no entries for now."""
        return self.is_paused_by_probe or self.state is _SNAPSHOT

    @property
    def is_window_full(self) -> bool:
        """Whether as many appends as allowed wait for an answer, or as many bytes (etcd raft/tracker/inflights.go)."""
        return len(self.inflight) >= self.max_inflight or self.inflight_bytes >= self.max_inflight_bytes

    def sent_entries(self, last: int, size_bytes: int = 0) -> None:
        """An append that ends at ``last`` is on its way; ``next - 1`` stands for one without entries.

        Args:
            size_bytes: of its payload; it counts only where there is a limit to it.
        """
        if self.state is _REPLICATE:
            if last >= self.next:
                self.next = last + 1
                self.inflight.append((last, size_bytes))
                self.inflight_bytes += size_bytes
            self.is_paused_by_probe = self.is_window_full
        elif last >= self.next:
            self.is_paused_by_probe = True

    def maybe_update(self, index: int) -> bool:
        """It acknowledged its log up to ``index``; false if that was known."""
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        self.is_paused_by_probe = False
        return True

    def free_inflight(self, index: int) -> None:
        """Appends up to ``index`` are acknowledged and leave the window."""
        inflight = self.inflight
        while inflight and inflight[0][0] <= index:
            self.inflight_bytes -= inflight.popleft()[1]

    def maybe_decrease(self, rejected: int, hint: int) -> bool:
        """It refused an append after entry ``rejected``; try after ``hint`` then. False if the answer is stale."""
        if self.state is ProgressState.REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
            self.sent_commit = min(self.sent_commit, self.next - 1)
            return True
        if self.next - 1 != rejected:
            return False  # an answer to a probe before this one
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self.is_paused_by_probe = False
        return True

    def describe(self, is_learner: bool) -> str:
        """One line for the operator, in etcd's words."""
        parts = [f"{self.state.value} match={self.match} next={self.next}"]
        if is_learner:
            parts.append("learner")
        if self.is_paused:
            parts.append("paused")
        if self.pending_snapshot:
            parts.append(f"pendingSnap={self.pending_snapshot}")
        if not self.recent_active:
            parts.append("inactive")
        if self.inflight:
            full = "[full]" if self.is_window_full else ""
            parts.append(f"inflight={len(self.inflight)}{full}")
        return " ".join(parts)
