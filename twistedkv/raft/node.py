"""One member's Raft state machine: roles, terms and votes, and what its driver has to do.

A node does nothing by itself. Its driver feeds it time (:meth:`RaftNode.tick`), messages (:meth:`RaftNode.step`) and
requests, then takes one :class:`~twistedkv.raft.messages.Ready` at a time, does what it says, and confirms it by
:meth:`RaftNode.advance`. The rules are the thesis's, the choices it leaves open are etcd's (raft.go), so that both can
be members of one cluster. What a leader does is in :mod:`twistedkv.raft.leadership`, what a candidate does in
:mod:`twistedkv.raft.candidacy`, what a follower does in :mod:`twistedkv.raft.following`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from twistedkv.errors import InvariantError
from twistedkv.pb import raft_pb2
from twistedkv.raft import confchange
from twistedkv.raft.candidacy import RESPONSE_TO, TRANSFER, Candidacy
from twistedkv.raft.confchange import ConfChange, Configuration
from twistedkv.raft.config import Config
from twistedkv.raft.following import Following
from twistedkv.raft.leadership import Leadership
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import (
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    ReadState,
    Ready,
    Role,
    Snapshot,
    SoftState,
)
from twistedkv.raft.outbox import Outbox
from twistedkv.raft.progress import Progress
from twistedkv.raft.quorum import VoteResult
from twistedkv.raft.readindex import ReadRequest
from twistedkv.raft.soundness import FORWARDED, is_sound

__all__ = ["Config", "ProposalDropped", "RaftNode"]

NOBODY = 0
_LAST_TERM: Final = (1 << 64) - 1  # the wire has no room for another one

_SNAPSHOT: Final = MessageType.SNAPSHOT  # a name of the module is found ten times as fast
_VOTES = frozenset(RESPONSE_TO)
_FROM_LEADER = frozenset({MessageType.APPEND, MessageType.HEARTBEAT, MessageType.SNAPSHOT})
_REPEATED = frozenset({MessageType.APPEND, MessageType.HEARTBEAT})  # by a leader that gets no answer
_ANSWERS = frozenset(RESPONSE_TO.values()) | {
    MessageType.APPEND_RESPONSE,
    MessageType.HEARTBEAT_RESPONSE,
    MessageType.READ_INDEX_RESPONSE,
}


def _any_changes(entries: Sequence[Entry]) -> bool:
    return any(entry.type is not EntryType.NORMAL for entry in entries)


def _no_snapshot() -> Snapshot | None:
    return None


class RaftNode:
    """A member, as restarted from what was durable.

    Args:
        config: what does not change.
        log: the durable log; from now on the node's.
        hard_state: the durable term, vote and commit index.
        conf_state: the configuration as of ``applied``.
        applied: index up to which the driver has applied the log; at least that of its last compaction.
        take_snapshot: gives the newest snapshot for a member that needs one; ``None`` if there is none at the moment.

    Raises:
        InvariantError: these do not fit together.
    """

    def __init__(
        self,
        config: Config,
        log: RaftLog,
        hard_state: HardState,
        conf_state: ConfState,
        applied: int,
        *,
        take_snapshot: Callable[[], Snapshot | None] = _no_snapshot,
    ) -> None:
        self.config = config
        self.log = log
        self.term = hard_state.term
        self.configuration = Configuration.of(conf_state)
        self.progress: dict[int, Progress] = {}
        self.role = Role.FOLLOWER
        self.leader = NOBODY
        self.take_snapshot = take_snapshot
        self._vote = hard_state.vote
        self._leadership: Leadership | None = None
        self._election_elapsed = 0  # ticks since a leader or a candidate was heard of
        self._election_timeout = 0
        self._candidacy: Candidacy | None = None
        self._outbox = Outbox(config.id)
        self._taken: Ready | None = None  # waits for advance()
        self._parked: Message | None = None  # waits for it too
        self._following = Following(self)
        # A commit index alone is not synced, so what was applied can be ahead of it; it was committed all the same.
        log.commit_to(max(hard_state.commit, applied))
        log.applied_to(applied)
        self._hard_state = HardState(self.term, self._vote, log.committed)  # as the driver knows it
        self._soft_state = SoftState(self.leader, self.role)
        self._follow_configuration()
        self._become_follower(self.term, NOBODY)

    # --- what it is --------------------------------------------------------------------------------

    @property
    def commit(self) -> int:
        """The index up to which the log is known to be committed."""
        return self.log.committed

    @property
    def applied(self) -> int:
        """The index up to which the log was given to the driver and confirmed by it."""
        return self.log.applied

    @property
    def transferee(self) -> int:
        """The member that is to lead next, 0 if none is."""
        return self._leadership.transferee if self._leadership else NOBODY

    @property
    def is_learner(self) -> bool:
        """Whether this node gets the log and has no vote."""
        return self.config.id in self.configuration.learners

    @property
    def change_is_pending(self) -> bool:
        """Whether a change of the members may be in the log that is not applied: another one would come to nothing."""
        if self._leadership is not None:
            return self._leadership.change_is_pending
        log = self.log
        first = max(log.applied, log.compacted) + 1
        return first <= log.last_index and _any_changes(log.slice(first, log.last_index))

    @property
    def _is_promotable(self) -> bool:
        return self.config.id in self.configuration.all_voters and self.log.snapshot is None

    # --- requests ----------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let one tick pass."""
        if self._leadership is not None:
            self._leadership.tick()
            return
        self._election_elapsed += 1
        if self._election_elapsed >= self._election_timeout and self._is_promotable:
            self._election_elapsed = 0
            self.campaign()

    def campaign(self) -> None:
        """Try to become leader now; does nothing in a leader, a learner, or while a committed change is not applied."""
        self._campaign(transfer=False)

    def propose(self, datas: Sequence[bytes]) -> None:
        """Append entries to the cluster's log. Whether they commit shows when they do; retrying may append them twice.

        Raises:
            ProposalDropped: nobody can take them now, and none was appended.
        """
        if self._leadership is not None:
            self._leadership.propose(datas)
        else:
            self._forward([Entry(0, 0, data) for data in datas])

    def propose_conf_change(self, change: ConfChange) -> None:
        """As :meth:`propose`, for a change of the members. When its entry commits, :meth:`apply_conf_change` it.

        While an earlier change is not applied, or if it does not fit the members, it is replaced by an empty entry.
        """
        entry = confchange.encode(change)
        if self._leadership is not None:
            self._leadership.propose_entries([entry])
        else:
            self._forward([entry])

    def read_index(self, context: bytes) -> None:
        """Ask for an index such that a state which has applied it may serve a linearizable read.

        It comes in :attr:`Ready.read_states` with ``context``. It never comes if leader or messages are lost: ask again
        after a time-out or a change of leader.

        Raises:
            ProposalDropped: there is no leader.
        """
        if self._leadership is not None:
            self._leadership.read(ReadRequest(self.config.id, context))
        elif self.leader == NOBODY:
            raise ProposalDropped("no leader")
        else:
            self.send(Message(MessageType.READ_INDEX, self.leader, entries=(Entry(0, 0, context),)))

    def transfer_leader(self, target: int) -> None:
        """Ask the leader to let ``target`` lead; whether it does shows in :attr:`leader` within an election timeout.

        Raises:
            ProposalDropped: there is no leader.
        """
        if self._leadership is not None:
            self._leadership.transfer(target)
        elif self.leader == NOBODY:
            raise ProposalDropped("no leader")
        else:
            self.send(Message(MessageType.TRANSFER_LEADER, self.leader, sender=target))

    def forget_leader(self) -> None:
        """Believe the leader dead, so that this follower votes for another one before its own time is up.

        Does nothing where reads go by lease: the leader relies on its time (etcd raft.go, stepFollower).
        """
        if self._leadership is None and not self.config.read_only_lease_based:
            self.leader = NOBODY

    def report_unreachable(self, member: int) -> None:
        """A message to ``member`` was lost."""
        if self._leadership is not None:
            self._leadership.report_unreachable(member)

    def report_snapshot(self, member: int, *, failed: bool) -> None:
        """The snapshot for ``member`` was delivered, or was not."""
        if self._leadership is not None:
            self._leadership.report_snapshot(member, failed=failed)

    def apply_conf_change(self, change: ConfChange) -> ConfState:
        """Make a committed change count. Call it for each such entry of a Ready, in order, before :meth:`advance`.

        A change that the driver refuses by its own rules is applied with ``node_id`` 0, on every member.

        Raises:
            ConfChangeError: it does not fit, and nothing was changed.
        """
        self._switch(self.configuration.changed(confchange.as_v2(change)))
        self._maybe_leave_joint()
        return self.configuration.state

    # --- the driver's loop -------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether :meth:`ready` has anything to say. False while one waits for its :meth:`advance`."""
        log, outbox = self.log, self._outbox
        return self._taken is None and bool(
            log.stable < log.last_index
            or (log.applied < log.committed and log.snapshot is None)
            or outbox.messages
            or outbox.read_states
            or outbox.responses
            or outbox.own_votes
            or log.snapshot is not None
            or (self._leadership is not None and self._leadership.has_waiting_reads)
            or self._hard_state != (self.term, self._vote, log.committed)
            or self._soft_state != (self.leader, self.role)
        )

    def ready(self) -> Ready:
        """What is to be done, in this order, where only ``messages`` need not wait for what is before them:

        make ``snapshot``, ``hard_state`` and ``entries`` durable together; send ``messages`` and ``responses``; apply
        ``snapshot`` or ``committed``; serve each of ``read_states`` when its index is applied; call :meth:`advance`.
        """
        if self._taken is not None:
            raise InvariantError("ready() again before advance()")
        log = self.log
        if self._leadership is not None:
            self._leadership.serve_reads()
        hard_state = soft_state = None
        must_sync = log.stable < log.last_index
        if self._hard_state != (self.term, self._vote, log.committed):
            hard_state = HardState(self.term, self._vote, log.committed)
            must_sync = must_sync or hard_state[:2] != self._hard_state[:2]
            self._hard_state = hard_state
        if self._soft_state != (self.leader, self.role):
            soft_state = self._soft_state = SoftState(self.leader, self.role)
        entries, committed = log.to_persist(), log.to_apply(self.config.max_committed_bytes_per_ready)
        messages, responses, read_states = self._outbox.take()
        self._taken = Ready(
            soft_state, hard_state, entries, log.snapshot, committed, messages, responses, read_states, must_sync
        )
        return self._taken

    def take_unsynced(self) -> tuple[Sequence[Message], Sequence[ReadState]]:
        """What came up since the last Ready and need not wait for its disk: messages to send, reads that may be served.

        For a driver whose disk is slow, between :meth:`ready` and :meth:`advance`, as often as it likes: heartbeats go
        out, and reads begin and end. What a read waits for is on the disks of a quorum, whatever became of this one; it
        is served when its index is applied, as always.
        """
        if self._leadership is not None:
            self._leadership.serve_reads()
        return self._outbox.take_unsynced()

    def advance(self, ready: Ready) -> None:
        """All of ``ready`` is durable, and its committed entries were handed on in order.

        What was proposed since stays for the next one. Only now do its entries count for the commit index here, and
        own votes for an election.
        """
        if ready is not self._taken:
            raise InvariantError("advance() with another Ready than the last one")
        self._taken = None
        log = self.log
        if ready.entries:
            log.stable_to(ready.entries)
        if ready.snapshot is not None:
            log.snapshot = None
            log.applied_to(ready.snapshot.meta.index)
        if self._leadership is not None:
            self._leadership.own_log_is_durable()
        if self._outbox.taken_votes:
            self._count_own_votes()
        if ready.committed:
            log.applied_to(ready.committed[-1].index)
            if self._leadership is not None and self._leadership.uncommitted_bytes:
                self._leadership.handed_on(ready.committed)
            self._maybe_leave_joint()
        if self._parked is not None:
            message, self._parked = self._parked, None
            self.step(message)

    # --- messages ----------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send as this node. What promises something durable waits for the disk; the rest does not (etcd raft.go)."""
        self._outbox.put(message, self.term)

    def step(self, message: Message) -> None:
        """Take one message from a peer; what follows from it waits in :meth:`ready`.

        What no member can have said is dropped, see :mod:`twistedkv.raft.soundness`.

        Raises:
            InvariantError: a leader says that entries are committed which this node acknowledged and has not.
        """
        kind, sender = message.type, message.sender
        if not is_sound(message) or (sender == self.config.id and kind is not MessageType.TRANSFER_LEADER):
            return  # nobody else speaks for this node; a hand-over bears the name of its target
        if kind in _ANSWERS and sender not in self.progress:
            return  # removed in the meantime: it shall not make anybody step down (etcd raft/node.go, run)
        if message.term == self.term or kind in FORWARDED:
            pass
        elif message.term > self.term:
            if kind in _VOTES and self._has_lease() and message.context != TRANSFER:
                return  # Raft thesis §4.2.3: a leader was heard of lately, this may be a removed member
            if kind is MessageType.PRE_VOTE or (kind is MessageType.PRE_VOTE_RESPONSE and not message.reject):
                pass  # Raft thesis §9.6: nobody's term moves before an election can be won
            else:
                self._become_follower(message.term, message.sender if kind in _FROM_LEADER else NOBODY)
        else:
            self._answer_stale(message)
            return
        if kind in _VOTES:
            self._on_vote_request(message)
        elif self._leadership is not None:
            with suppress(ProposalDropped):  # the proposer is a peer: it finds out by its time-out
                self._leadership.step(message)
        elif kind in _FROM_LEADER:
            self._on_leader_message(message)
        elif self._candidacy is not None:
            self._step_candidate(self._candidacy, message)
        else:
            self._step_follower(message)

    def _has_lease(self) -> bool:
        return (
            self.config.check_quorum and self.leader != NOBODY and self._election_elapsed < self.config.election_ticks
        )

    def _answer_stale(self, message: Message) -> None:
        """Raft §5.1: refuse what is of an old term; say so where the sender could wait for ever otherwise."""
        if message.type in _REPEATED and (self.config.check_quorum or self.config.pre_vote):
            # This node's term is ahead, by elections that failed. The leader steps down at this answer, which is the
            # way back for a node that ignores its appends and whose votes are ignored (etcd raft.go, Step).
            self.send(Message(MessageType.APPEND_RESPONSE, message.sender))
        elif message.type is MessageType.PRE_VOTE:
            self.send(Message(MessageType.PRE_VOTE_RESPONSE, message.sender, reject=True))

    def _on_vote_request(self, message: Message) -> None:
        pre = message.type is MessageType.PRE_VOTE
        response = RESPONSE_TO[message.type]
        free = (
            self._vote == message.sender  # Raft §5.2: one vote a term
            or (self._vote == NOBODY and self.leader == NOBODY)
            or (pre and message.term > self.term)
        )
        if free and self.log.is_up_to_date(message.index, message.log_term):  # Raft §5.4.1
            # A pre-vote is for a term to come, so the answer carries that one.
            self.send(Message(response, message.sender, term=message.term))
            if not pre:
                self._election_elapsed = 0
                self._vote = message.sender
        else:
            self.send(Message(response, message.sender, reject=True))

    def _on_leader_message(self, message: Message) -> None:
        if self._candidacy is not None:
            self._become_follower(self.term, message.sender)  # Raft §5.2: another one has won this term
        elif self.leader != message.sender:
            if self.leader != NOBODY:
                return  # Raft §5.2: one leader a term, so one of the two is none
            self.leader = message.sender
        self._election_elapsed = 0
        if message.type is _SNAPSHOT and self._taken is not None:
            self._parked = message  # its members must not be changed by what is being applied now and is older
        else:
            self._following.take(message)

    def _step_follower(self, message: Message) -> None:
        match message.type:
            case MessageType.PROPOSE | MessageType.TRANSFER_LEADER | MessageType.READ_INDEX:
                if self.leader != NOBODY:
                    message.to, message.term = self.leader, 0
                    self.send(message)
            case MessageType.TIMEOUT_NOW:
                if self.leader in (message.sender, NOBODY):
                    self._campaign(transfer=True)  # Raft thesis §3.10
            case MessageType.READ_INDEX_RESPONSE:
                if message.sender == self.leader:
                    self.answer_read(ReadState(message.index, message.entries[0].data))
            case _:
                pass  # answers to what this node asked in another role

    def _count_own_votes(self) -> None:
        votes, self._outbox.taken_votes = self._outbox.taken_votes, []
        for vote in votes:
            if self._candidacy is not None:
                self._step_candidate(self._candidacy, vote)

    def _step_candidate(self, candidacy: Candidacy, message: Message) -> None:
        match candidacy.count(message):
            case VoteResult.WON if candidacy.pre:
                self._become_candidate()
            case VoteResult.WON:
                self._become_leader()
            case VoteResult.LOST:
                self._become_follower(self.term, NOBODY)
            case VoteResult.PENDING:
                pass

    # --- roles -------------------------------------------------------------------------------------

    def _reset(self, term: int) -> None:
        if term != self.term:
            self.term = term
            self._vote = NOBODY
        self.leader = NOBODY
        self._leadership = self._candidacy = None
        self._election_elapsed = 0
        # Raft §5.2: random, so that not all campaign at once.
        ticks = self.config.election_ticks
        self._election_timeout = ticks + self.config.random.randrange(ticks)

    def _become_follower(self, term: int, leader: int) -> None:
        self._reset(term)
        self.role = Role.FOLLOWER
        self.leader = leader

    def _become_leader(self) -> None:
        self._reset(self.term)
        self.role = Role.LEADER
        self.leader = self.config.id
        self._leadership = Leadership(self)
        self._leadership.propose([b""])  # Raft §5.4.2, §8: what is before commits with an entry of this term

    def _campaign(self, *, transfer: bool) -> None:
        if self.role is Role.LEADER or not self._is_promotable or self.term == _LAST_TERM:
            return
        if _any_changes(self.log.to_apply()):
            return  # the configuration to campaign by is known to be over (etcd raft.go, hup)
        if self.config.pre_vote and not transfer:
            self._become_pre_candidate()
        else:
            self._become_candidate(transfer=transfer)

    def _become_pre_candidate(self) -> None:
        """Raft thesis §9.6: ask whether an election could be won, and leave term and vote alone."""
        self.leader = NOBODY
        self.role = Role.PRE_CANDIDATE
        self._candidacy = Candidacy(self, pre=True)
        self._candidacy.ask()

    def _become_candidate(self, *, transfer: bool = False) -> None:
        self._reset(self.term + 1)
        self._vote = self.config.id
        self.role = Role.CANDIDATE
        self._candidacy = Candidacy(self, pre=False)
        self._candidacy.ask(transfer=transfer)

    def step_down(self) -> None:
        """Be a follower in the same term, without a leader."""
        self._become_follower(self.term, NOBODY)

    def answer_read(self, state: ReadState) -> None:
        """Hand a read of this node's own to the driver."""
        self._outbox.read_states.append(state)

    def _forward(self, entries: Sequence[Entry]) -> None:
        if self.leader == NOBODY:
            raise ProposalDropped("no leader")
        self._following.forward(self.leader, entries)

    # --- configuration and snapshots ---------------------------------------------------------------

    def _switch(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self._follow_configuration()
        if self._leadership is None:
            if self._candidacy is not None and self.config.id not in configuration.all_voters:
                self.step_down()  # who has no vote leads nobody, whatever others answer yet
            return
        if self.config.id not in configuration.all_voters:
            if self.config.step_down_on_removal:
                self.step_down()
            return  # Raft §6: it leads on until the new configuration commits, and counts no more
        self._leadership.configuration_changed()

    def _follow_configuration(self) -> None:
        """Keep the progress of members that stay, and begin with that of new ones."""
        next_index = max(self.log.last_index, 1)
        progress: dict[int, Progress] = {}
        for member in sorted(self.configuration.members):
            known = self.progress.get(member)
            if known is None:
                known = Progress(next_index, self.config.max_inflight, self.config.max_inflight_bytes)
                known.recent_active = True  # a leader does not step down because it added a member just now
            progress[member] = known
        self.progress = progress

    def _maybe_leave_joint(self) -> None:
        """Propose the end of a joint state that is to end by itself, when the change that began it is applied."""
        lead, configuration = self._leadership, self.configuration
        if lead is not None and configuration.auto_leave and self.log.applied >= lead.pending_conf_index:
            with suppress(ProposalDropped):  # while handing over; the next one applied asks again
                lead.propose_entries([confchange.encode(raft_pb2.ConfChangeV2())])

    def begin_with(self, configuration: Configuration) -> None:
        """Know these members, and nothing of how far they are."""
        self.progress = {}
        self._switch(configuration)
