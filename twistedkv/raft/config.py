"""What a Raft node is told once, when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from twistedkv.raft.log import NO_LIMIT


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one node. Defaults are etcd's (server/etcdserver/bootstrap.go, server/embed/config.go)."""

    id: int  # not 0
    random: Random  # spreads election timeouts (Raft §5.2)
    election_ticks: int = 10  # a follower waits one to two times this
    heartbeat_ticks: int = 1  # less than election_ticks
    max_size_per_message_bytes: int = 1024 * 1024  # of entries in one append; a single entry may be larger
    max_inflight: int = 512  # appends on their way to one member
    max_inflight_bytes: int = NO_LIMIT  # of payload in them; the last one may go beyond it
    max_uncommitted_bytes: int = NO_LIMIT  # of payload that a leader takes ahead of what is committed and handed on
    max_committed_bytes_per_ready: int = NO_LIMIT
    pre_vote: bool = True  # Raft thesis §9.6
    check_quorum: bool = True  # Raft thesis §6.2: a leader that hears from no quorum steps down
    # Whether a leader that has applied its own removal leads on until it is stopped. If it steps down at once, others
    # may not know yet that they need its vote no more: of two voters the remaining one would wait for it for ever.
    step_down_on_removal: bool = False
    validate_conf_changes: bool = True  # refuse a change while another one is not applied, or that does not fit
    # Whether a leader that a quorum answered lately serves reads without asking again (Raft thesis §6.4.1). It trusts
    # that all members tick alike, and on time also after their process was stopped; and that no member restarts within
    # an election timeout, because it would not know any more what it has promised. All members need check_quorum.
    read_only_lease_based: bool = False

    # Whether a follower answers an append that brings nothing but a new commit index, as etcd's does. That tells the
    # leader nothing that it does not know, unless an earlier answer was lost; then it asks again with a heartbeat.
    answers_commits: bool = True

    def __post_init__(self) -> None:
        if self.id == 0:
            raise ValueError("node id 0 stands for nobody")
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            raise ValueError("heartbeat_ticks must be at least 1 and less than election_ticks")
        if self.max_inflight < 1:
            raise ValueError("max_inflight must be at least 1")
        if self.max_inflight_bytes < max(self.max_size_per_message_bytes, 1):
            raise ValueError("max_inflight_bytes must be at least max_size_per_message_bytes")
        if self.read_only_lease_based and not self.check_quorum:
            raise ValueError("read_only_lease_based needs check_quorum")
