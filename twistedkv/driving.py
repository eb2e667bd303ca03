"""The drive loop: takes from Raft one batch after the other, and has each written, sent, committed and applied.

While the disk works, further proposals and messages pile up and become the next batch: group commit without a timer.
What need not wait for the disk does not: a leader sends its entries to the others while it writes them itself (Raft
thesis §10.2.1), and while a disk is slow, heartbeats and reads go on. What a member answers to a leader or a candidate
goes out when it is durable, and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.applying import Applying
from twistedkv.errors import KVError
from twistedkv.incoming import IncomingSnapshots
from twistedkv.installation import Installation
from twistedkv.logwriter import LogWriter
from twistedkv.proposals import Proposals
from twistedkv.protocols.turn import Turn
from twistedkv.raft.messages import Entry, EntryType, Message, ProposalDropped, ReadState, Ready, Snapshot, SoftState
from twistedkv.raft.node import RaftNode
from twistedkv.reads import ReadGate
from twistedkv.replication import Replication
from twistedkv.restore import Loaded
from twistedkv.storage.backend import BackendError

_log = Logger()


class DriveListener(Protocol):
    """What the member does when Raft says so; see :class:`twistedkv.server.Member`."""

    @property
    def may_read(self) -> bool:
        """Whether readers need to ask nobody."""

    def members_committed(self) -> None:
        """Others than before may vote from now on."""

    def role_changed(self, state: SoftState) -> None:
        """There is another leader, none any more, or this member has another role."""

    def restored(self, loaded: Loaded) -> None:
        """A snapshot is in the database: take its state into memory."""


class Driving:
    """Drives one Raft node.

    Args:
        node: Raft.
        writer: the log on disk.
        replication: the other members.
        proposals: what is to be given to Raft.
        reads: who waits to read.
        applying: takes what is committed.
        incoming, installation: take a snapshot.
        turn: brackets answers.
        clock: for the next turn.
        listener: hears what else happens.
        halt: told what must not happen.
    """

    def __init__(
        self,
        node: RaftNode,
        writer: LogWriter,
        replication: Replication,
        proposals: Proposals,
        reads: ReadGate,
        applying: Applying,
        incoming: IncomingSnapshots,
        installation: Installation,
        turn: Turn,
        clock: IReactorTime,
        listener: DriveListener,
        halt: Callable[[Failure], None],
    ) -> None:
        self._node = node
        self._writer = writer
        self._replication = replication
        self._proposals = proposals
        self._reads = reads
        self._applying = applying
        self._incoming = incoming
        self._installation = installation
        self._turn = turn
        self._clock = clock
        self._listener = listener
        self._halt = halt
        self._call: IDelayedCall | None = None
        self._carried_out: Ready | None = None  # the one under way, if what it says is committed is in the state
        self._stopped = False

    @property
    def _busy(self) -> bool:
        """Whether nothing new can be taken from Raft at the moment."""
        return self._writer.busy or self._installation.busy

    def stop(self) -> None:
        """Take nothing further."""
        self._stopped = True
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def stir(self) -> None:
        """Something was proposed, asked or received: see what follows from it, at the end of the reactor's turn."""
        if self._call is None and not self._stopped:
            self._call = self._clock.callLater(0, self._on_turn)

    def tick(self) -> None:
        """Let one tick of Raft's time pass."""
        self._node.tick()
        if self._reads.waiting or self._proposals.any or self._node.has_ready() or self._busy:
            self.stir()

    def step(self, message: Message) -> None:
        """Give Raft a message from another member."""
        if self._stopped:
            return
        try:
            self._node.step(message)
        except Exception:
            self._halt(Failure())
        else:
            self.stir()

    # --- the loop ----------------------------------------------------------------------------------

    def _on_turn(self) -> None:
        self._call = None
        self.run()

    def run(self) -> None:
        """Take batches from Raft until there is nothing to do, or until the disk has to be waited for."""
        try:
            with self._turn:
                if self._busy:
                    self._go_on_without_disk()
                else:
                    self._run()
        except Exception:
            self._halt(Failure())

    def _run(self) -> None:
        node = self._node
        while not self._busy and not self._stopped:
            if self._reads.waiting and not self._listener.may_read:
                self._ask_to_read()
            if self._proposals.any:
                self._proposals.give()  # together with what is committed: one message to each follower says both
            if not node.has_ready():
                return
            ready = node.ready()
            if ready.soft_state is not None:
                self._on_soft_state(ready.soft_state)
            if ready.messages:
                self._replication.send(ready.messages)
            if ready.read_states:
                self._answer_reads(ready.read_states)
            if ready.snapshot is not None:
                Deferred.fromCoroutine(self._install(ready, ready.snapshot)).addErrback(self._halt)
            elif ready.must_sync:
                self._write(ready)
            else:
                if ready.hard_state is not None:
                    self._writer.note(ready.hard_state)
                self._handle(ready)

    def _write(self, ready: Ready) -> None:
        """Make ``ready`` durable. What it says is committed need not wait for that, if our own disk has it already.

        If it does not, a crash could leave a database that is ahead of its log.
        """
        committed = ready.committed
        if committed and committed[-1].index <= self._node.log.stable:
            self._note_members(committed)
            self._applying.add(committed)
            self._carried_out = ready
            self._turn.flush()  # the answers need not wait for the disk either
        if self._writer.append(ready, self._durable):
            self._handle(ready)

    def _note_members(self, committed: Sequence[Entry]) -> None:
        """Changes of the members count for Raft before it hears that they are taken, and before they are applied."""
        for entry in committed:
            if entry.type is not EntryType.NORMAL:
                self._listener.members_committed()
                self._replication.members_committed(entry)

    def _durable(self, ready: Ready) -> None:
        """What the disk was waited for is on it."""
        if self._stopped:
            return
        with self._turn:
            self._handle(ready)
            self._run()

    def _go_on_without_disk(self) -> None:
        if self._reads.waiting and not self._listener.may_read:
            self._ask_to_read()
        messages, read_states = self._node.take_unsynced()
        if messages:
            self._replication.send(messages)
        self._answer_reads(read_states)

    def _answer_reads(self, read_states: Sequence[ReadState]) -> None:
        """The quorum has confirmed these: whatever our own disk does, they wait for nothing but the state."""
        for state in read_states:
            self._reads.answered(state.context, state.index)
        if read_states:
            self._reads.applied(self._applying.index)

    def _ask_to_read(self) -> None:
        context = self._reads.next_question(self._clock.seconds())
        if context is not None:
            try:
                self._node.read_index(context)
            except ProposalDropped:
                self._reads.not_asked()  # nobody leads; the next tick asks again

    def _handle(self, ready: Ready) -> None:
        """``ready`` is durable: tell the others and the node, and apply what it says is committed."""
        if ready.responses:
            self._replication.send(ready.responses)
        committed = () if ready is self._carried_out else ready.committed
        self._carried_out = None
        self._note_members(committed)
        self._node.advance(ready)
        if self._incoming.waiting:
            taken = self._node.log.snapshot
            self._incoming.drop_but(0 if taken is None else taken.meta.index)
        self._applying.add(committed)

    def _on_soft_state(self, state: SoftState) -> None:
        if state.leader:
            self._reads.leader_changed()
            self._proposals.leader_began()
            _log.info("{leader:x} leads in term {term}", leader=state.leader, term=self._node.term)
        self._listener.role_changed(state)

    async def _install(self, ready: Ready, snapshot: Snapshot) -> None:
        """Put a snapshot in place of the state; nothing is taken from Raft meanwhile."""
        try:
            await self._installation.install(ready, snapshot, self._listener.restored)
        except (BackendError, KVError):
            if self._stopped:
                return
            raise
        if self._stopped:
            return
        with self._turn:
            self._replication.restored()
            self._handle(ready)
            self._run()
