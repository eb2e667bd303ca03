"""What a node does and remembers while it leads: replication, commitment, heartbeats, hand-over, reads.

Volatile state of leaders (Raft, figure 2) is made new with each election, so it is an object that the node makes when
it becomes leader and drops when it steps down. The rules follow the thesis and, where that leaves them
open, etcd's raft.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from twistedkv.raft import confchange
from twistedkv.raft.confchange import ConfChangeError, Configuration
from twistedkv.raft.config import Config
from twistedkv.raft.log import NO_LIMIT, RaftLog, payload_bytes
from twistedkv.raft.messages import (
    Entry,
    EntryType,
    Message,
    MessageType,
    ProposalDropped,
    ReadState,
    Snapshot,
)
from twistedkv.raft.progress import Progress, ProgressState
from twistedkv.raft.quorum import VoteResult, joint_committed, joint_vote
from twistedkv.raft.readindex import ReadIndex, ReadRequest

_APPEND: Final = MessageType.APPEND  # a name of the module is found ten times as fast
_APPEND_RESPONSE: Final = MessageType.APPEND_RESPONSE
_HEARTBEAT: Final = MessageType.HEARTBEAT
_NORMAL: Final = EntryType.NORMAL
_PROBE: Final = ProgressState.PROBE
_REPLICATE: Final = ProgressState.REPLICATE
_new: Final = tuple.__new__  # makes an entry in half the time that its class needs for it


class Node(Protocol):
    """What leading needs of the node that leads."""

    config: Config
    log: RaftLog
    term: int
    configuration: Configuration
    progress: dict[int, Progress]  # of every member, in id order

    def send(self, message: Message) -> None:
        """Send as this node, in its term."""

    def answer_read(self, state: ReadState) -> None:
        """Hand a read of this node's own to the driver."""

    def take_snapshot(self) -> Snapshot | None:
        """The newest snapshot of the state; ``None`` if there is none at the moment."""

    def step_down(self) -> None:
        """Be a follower in the same term, without a leader."""


class Leadership:
    """One node's time as leader of one term."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._log = node.log
        self._id = node.config.id
        config = node.config
        self._max_size_bytes = config.max_size_per_message_bytes
        self._limits_inflight_bytes = config.max_inflight_bytes != NO_LIMIT
        self._limits_uncommitted_bytes = config.max_uncommitted_bytes != NO_LIMIT
        self.uncommitted_bytes = 0  # of its own entries, until they are committed and handed on; if there is a limit
        self._reads = ReadIndex()
        self._lease_is_given_up = False
        self._ticks = 0  # of this leader's time
        self._reads_before_commit: list[ReadRequest] = []  # Raft thesis §6.4: not before an entry of this term
        self._heartbeat_elapsed = self._election_elapsed = 0  # ticks
        self.transferee = 0  # who is to lead next
        # No other change may be appended before this index is applied: there may be one in the log up to here.
        self.pending_conf_index = node.log.last_index
        last = node.log.last_index
        for member in node.progress:
            node.progress[member] = Progress(last + 1, config.max_inflight, config.max_inflight_bytes)
        myself = node.progress[self._id]
        myself.match = node.log.stable
        myself.recent_active = True
        myself.become_replicate()

    # --- proposals ---------------------------------------------------------------------------------

    def propose(self, datas: Sequence[bytes]) -> None:
        """Append entries of this term, and send them to everyone.

        Raises:
            ProposalDropped: this node is no member any more, or hands over, or is too far ahead of what is committed.
        """
        term, first = self._check_proposals(), self._log.last_index + 1
        self._append([_new(Entry, (term, index, data, _NORMAL)) for index, data in enumerate(datas, first)])

    def propose_entries(self, proposals: Sequence[Entry]) -> None:
        """As :meth:`propose`, for entries that may be configuration changes; their terms and indexes do not matter.

        A change that may not be made now becomes an empty entry, so that the indexes of the others stay (etcd raft.go,
        stepLeader).
        """
        term, first = self._check_proposals(), self._log.last_index + 1
        pending = self.pending_conf_index
        entries = list[Entry]()
        for index, proposal in enumerate(proposals, first):
            entry = Entry(term, index, proposal.data, proposal.type)
            if entry.type is not EntryType.NORMAL:
                if self._may_change(entry, pending):
                    pending = index
                else:
                    entry = Entry(term, index, b"")
            entries.append(entry)
        self._append(entries)
        self.pending_conf_index = pending

    def _check_proposals(self) -> int:
        """The term for new entries."""
        if self.transferee or self._id not in self._node.progress:
            raise ProposalDropped("no member any more, or handing over")
        return self._node.term

    def _append(self, entries: Sequence[Entry]) -> None:
        if self._limits_uncommitted_bytes:
            size, ahead = payload_bytes(entries), self.uncommitted_bytes
            # What has no payload is always taken: a new leader's first entry, the end of a joint state.
            if size and ahead and ahead + size > self._node.config.max_uncommitted_bytes:
                raise ProposalDropped("too far ahead of what is committed")
            self.uncommitted_bytes = ahead + size
        self._log.append(entries)
        self.broadcast_append()

    def handed_on(self, committed: Sequence[Entry]) -> None:
        """The driver was given these entries: as much may be proposed again (etcd raft.go, reduceUncommittedSize)."""
        term = self._node.term
        self.uncommitted_bytes -= payload_bytes([entry for entry in committed if entry.term == term])

    @property
    def change_is_pending(self) -> bool:
        """Whether a change of the members may be in the log that is not applied."""
        return self.pending_conf_index > self._log.applied

    def _may_change(self, entry: Entry, pending_conf_index: int) -> bool:
        """Whether the change in ``entry`` can be made by the configuration as it will be when the entry is applied."""
        try:
            change = confchange.as_v2(confchange.decode(entry))
        except ValueError:
            return False  # every member would stop at it
        if not self._node.config.validate_conf_changes:
            return True
        configuration = self._node.configuration
        if pending_conf_index > self._log.applied or bool(change.changes) == configuration.is_joint:
            return False
        try:
            configuration.changed(change)
        except ConfChangeError:
            return False  # so they would
        return True

    # --- replication -------------------------------------------------------------------------------

    def broadcast_append(self) -> None:
        """Send everyone what they lack, or just the commit index."""
        for member in self._node.progress:
            if member != self._id:
                self.maybe_send_append(member)

    def maybe_send_append(self, member: int, *, even_if_empty: bool = True) -> bool:
        """Send a member the entries it was not sent yet, or a snapshot if they are gone; false: nothing was sent."""
        log, progress = self._log, self._node.progress[member]
        if progress.is_paused:
            return False
        previous = progress.next - 1
        if previous < log.compacted:
            return self._maybe_send_snapshot(member, progress)
        entries: list[Entry] = []
        # With a full window an append without entries still finds out whether the ones before were lost.
        throttled = progress.state is _REPLICATE and progress.is_window_full
        if previous < log.last_index and not throttled:
            entries = log.slice(previous + 1, log.last_index, self._max_size_bytes)
        if not entries and not even_if_empty:
            return False
        self._node.send(
            Message(
                _APPEND,
                member,
                log_term=log.term(previous),
                index=previous,
                entries=entries,
                commit=log.committed,
            )
        )
        progress.sent_entries(previous + len(entries), payload_bytes(entries) if self._limits_inflight_bytes else 0)
        progress.sent_commit = max(progress.sent_commit, log.committed)
        return True

    def _maybe_send_snapshot(self, member: int, progress: Progress) -> bool:
        if not progress.recent_active:
            return False  # who does not answer does not need megabytes
        snapshot = self._node.take_snapshot()
        if snapshot is None:
            return False
        progress.become_snapshot(snapshot.meta.index)
        self._node.send(Message(MessageType.SNAPSHOT, member, snapshot=snapshot))
        return True

    def maybe_commit(self) -> bool:
        """Move the commit index to what a quorum has; only an entry of this term may be counted (Raft §5.4.2)."""
        log, configuration, progress = self._log, self._node.configuration, self._node.progress
        if log.committed == log.last_index:
            return False  # as after most acknowledgements: others were enough
        index = joint_committed(configuration.voters, configuration.outgoing, lambda voter: progress[voter].match)
        if index <= log.committed or log.term(index) != self._node.term:
            return False
        log.commit_to(index)
        if self._reads_before_commit:
            self._reads.waiting += self._reads_before_commit
            self._reads_before_commit = []
        return True

    def own_log_is_durable(self) -> None:
        """The disk has caught up: this node counts for the quorum up to there."""
        myself = self._node.progress.get(self._id)
        if myself is not None and myself.maybe_update(self._log.stable) and self.maybe_commit():
            self.broadcast_append()

    # --- what comes from others --------------------------------------------------------------------

    def step(self, message: Message) -> None:
        """Take a message of this term, or one that was forwarded."""
        kind, progress = message.type, self._node.progress.get(message.sender)
        if kind is _APPEND_RESPONSE:
            if progress is not None:
                progress.recent_active = True
                if message.reject:
                    self._on_append_refused(message, progress)
                else:
                    self._on_append_accepted(message, progress)
            return
        match kind:
            case MessageType.PROPOSE:
                self.propose_entries(message.entries)
            case MessageType.READ_INDEX:
                self.read(ReadRequest(message.sender, message.entries[0].data))
            case MessageType.HEARTBEAT_RESPONSE if progress is not None:
                self._on_heartbeat_response(message, progress)
            case MessageType.TRANSFER_LEADER:
                self.transfer(message.sender)
            case _:
                pass  # a vote that came late; what only followers take

    def _on_append_accepted(self, message: Message, progress: Progress) -> None:
        sender, index = message.sender, message.index
        if index > self._log.last_index:
            return  # it can not have what was never sent
        state = progress.state
        is_probe_answered = state is _PROBE and progress.match == index
        if not progress.maybe_update(index) and not is_probe_answered:
            return
        if state is _REPLICATE:
            progress.free_inflight(index)
        elif state is _PROBE or progress.match >= self._log.compacted:
            progress.become_replicate()  # after a snapshot: the log reaches far enough, whatever became of that
        if self.maybe_commit():
            self.broadcast_append()
        elif progress.sent_commit < min(self._log.committed, progress.next - 1):
            self.maybe_send_append(sender)
        while self.maybe_send_append(sender, even_if_empty=False):
            pass  # fill the window that has become free
        if sender == self.transferee and progress.match == self._log.last_index:
            self._send_timeout_now(sender)

    def _on_append_refused(self, message: Message, progress: Progress) -> None:
        hint = message.reject_hint
        if message.log_term > 0:
            # The follower has this term at its hint; the last index of ours with at most that one is the first that
            # can match (Raft §5.3, last paragraph).
            hint, _ = self._log.conflict_hint(hint, message.log_term)
        if progress.maybe_decrease(message.index, hint):
            if progress.state is ProgressState.REPLICATE:
                progress.become_probe()
            self.maybe_send_append(message.sender)

    def _on_heartbeat_response(self, message: Message, progress: Progress) -> None:
        progress.recent_active = True
        progress.is_paused_by_probe = False
        if progress.match < self._log.last_index or progress.state is _PROBE:
            self.maybe_send_append(message.sender)
        self._confirm_reads(message.sender, message.context)

    def report_unreachable(self, member: int) -> None:
        """A message to ``member`` was lost: stop sending it more before it answers."""
        progress = self._node.progress.get(member)
        if progress is not None and progress.state is ProgressState.REPLICATE:
            progress.become_probe()

    def report_snapshot(self, member: int, *, failed: bool) -> None:
        """The snapshot for ``member`` was delivered or not; what it needs next comes out by its answer or heartbeat."""
        progress = self._node.progress.get(member)
        if progress is None or progress.state is not ProgressState.SNAPSHOT:
            return
        if failed:
            progress.pending_snapshot = 0
        progress.become_probe()
        progress.is_paused_by_probe = True

    # --- time --------------------------------------------------------------------------------------

    def heartbeat(self) -> None:
        """Tell everyone that this node leads, and what of their log is committed (Raft §5.2)."""
        context, committed = self._reads.context, self._log.committed
        for member, progress in self._node.progress.items():
            if member != self._id:
                # Not more than is known to be there: the rest of its log may be another one.
                commit = min(progress.match, committed)
                self._node.send(Message(_HEARTBEAT, member, commit=commit, context=context))
                progress.sent_commit = max(progress.sent_commit, commit)

    def tick(self) -> None:
        """Let one tick pass."""
        config = self._node.config
        self._ticks += 1
        self._heartbeat_elapsed += 1
        self._election_elapsed += 1
        if self._election_elapsed >= config.election_ticks:
            self._election_elapsed = 0
            self.transferee = 0  # it did not take over in time (Raft thesis §3.10)
            if config.check_quorum and not self._has_active_quorum():
                self._node.step_down()
                return
        if self._heartbeat_elapsed >= config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            if config.read_only_lease_based:
                self._reads.begin(self._log.committed, self._ticks)
            self.heartbeat()

    def _has_active_quorum(self) -> bool:
        """Whether a quorum was heard of since the last call (Raft thesis §6.2)."""
        configuration = self._node.configuration
        active = {m: m == self._id or p.recent_active for m, p in self._node.progress.items()}
        for member, progress in self._node.progress.items():
            progress.recent_active = member == self._id
        return joint_vote(configuration.voters, configuration.outgoing, active) is VoteResult.WON

    # --- hand-over (Raft thesis §3.10) -------------------------------------------------------------

    def transfer(self, target: int) -> bool:
        """Let ``target`` lead next; no proposals until it does or time is up. False if there is nothing to do."""
        progress = self._node.progress.get(target)
        is_voter = target in self._node.configuration.all_voters
        if progress is None or not is_voter or target == self.transferee:
            return False
        if target == self._id:
            self.transferee = 0  # it leads, and another one shall not (etcd raft.go, stepLeader)
            return False
        self.transferee = target
        self._election_elapsed = 0  # the time it has for it
        if progress.match == self._log.last_index:
            self._send_timeout_now(target)
        else:
            self.maybe_send_append(target)
        return True

    def _send_timeout_now(self, target: int) -> None:
        self._lease_is_given_up = True  # whoever votes for the target does not wait for its end (Raft thesis §6.4.1)
        self._node.send(Message(MessageType.TIMEOUT_NOW, target))

    # --- reads -------------------------------------------------------------------------------------

    def read(self, request: ReadRequest) -> None:
        """Answer a read when it is known that this node leads and what is committed."""
        if self._log.term(self._log.committed) != self._node.term:
            self._reads_before_commit.append(request)
        else:
            self._reads.waiting.append(request)

    def serve_reads(self) -> None:
        """Answer the reads of this turn at once, alone, or begin a round for them."""
        waiting = self._reads.waiting
        if not waiting:
            return
        configuration = self._node.configuration
        is_alone = configuration.voters == {self._id} and not configuration.outgoing
        if is_alone or self._has_lease:
            self._reads.waiting = []
            self._answer(self._log.committed, waiting)
        else:
            self._reads.begin(self._log.committed, self._ticks)
            self.heartbeat()

    @property
    def _has_lease(self) -> bool:
        """Whether nobody else can have been elected since a quorum answered (Raft thesis §6.4.1)."""
        config, since = self._node.config, self._reads.confirmed_tick
        if not config.read_only_lease_based or self._lease_is_given_up or since is None:
            return False
        # The first tick of a member can follow at once on what it answered, and the next one of ours is almost here.
        return self._ticks - since <= config.election_ticks - 2

    def _confirm_reads(self, sender: int, context: bytes) -> None:
        voters, outgoing = self._node.configuration.voters, self._node.configuration.outgoing
        for index, requests in self._reads.acknowledge(sender, context, self._id, voters, outgoing):
            self._answer(index, requests)

    @property
    def has_waiting_reads(self) -> bool:
        """Whether :meth:`serve_reads` has something to do."""
        return bool(self._reads.waiting)

    def _answer(self, index: int, requests: Sequence[ReadRequest]) -> None:
        for sender, context in requests:
            if sender in (0, self._id):
                self._node.answer_read(ReadState(index, context))
            else:
                entries = (Entry(0, 0, context),)
                self._node.send(Message(MessageType.READ_INDEX_RESPONSE, sender, index=index, entries=entries))

    # --- configuration -----------------------------------------------------------------------------

    def configuration_changed(self) -> None:
        """Members came or went: fewer may be needed for a quorum, and new ones need the log."""
        if self.maybe_commit():
            self.broadcast_append()
        else:
            for member in self._node.progress:
                if member != self._id:
                    self.maybe_send_append(member, even_if_empty=False)
        if self.transferee and self.transferee not in self._node.configuration.all_voters:
            self.transferee = 0
        self._confirm_reads(self._id, self._reads.context)  # nobody else may be left to do it
