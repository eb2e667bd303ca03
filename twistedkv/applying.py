"""Carrying out what is committed: entry after entry goes into the replicated state, and whoever waits is answered.

Most entries are applied at once, out of memory. One whose transaction reads what only the database holds waits until
that is fetched, and all behind it with it; so does everything while the database is too far behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from twistedkv.apply import Applier
from twistedkv.compaction import Sweeper
from twistedkv.errors import InvariantError, KVError
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.raft_pb2 import ConfChange
from twistedkv.protocols.turn import Turn
from twistedkv.raft.messages import Entry, EntryType
from twistedkv.statekeeper import StateKeeper
from twistedkv.storage.mvcc import Loan
from twistedkv.v2errors import V2Error
from twistedkv.v2request import PlainSet, decode_entry
from twistedkv.waiting import WaitingRoom
from twistedkv.wire import HeaderEncoder


class ApplyListener(Protocol):
    """Who hears what became of the entries; see :class:`twistedkv.server.Member`."""

    @property
    def term(self) -> int:
        """The current Raft term, for headers."""

    def entry_applied(self, size_bytes: int) -> None:
        """An entry of so many bytes was applied."""

    def term_began(self, term: int) -> None:
        """The first entry of a leader's term was applied: what earlier leaders committed is in the state."""

    def member_changed(self, change: ConfChange) -> None:
        """A change of the members was applied."""

    def batch_applied(self, *, all_of_it: bool) -> None:
        """As many entries were applied as can be now."""


class Applying:
    """The committed entries on their way into the state.

    Args:
        applier: the state and its only writer.
        index, term: of the last entry that is in the state already.
        waiting: who waits for requests.
        header: of answers.
        turn: brackets what comes back from the database.
        clock: tells how long a batch took.
        listener: hears of it.
        halt: told what must not happen.
    """

    def __init__(
        self,
        applier: Applier,
        index: int,
        term: int,
        waiting: WaitingRoom,
        header: HeaderEncoder,
        turn: Turn,
        clock: IReactorTime,
        listener: ApplyListener,
        halt: Callable[[Failure], None],
    ) -> None:
        self.index = index
        self.term = term
        self.last_batch_s = 0.0  # how long the last one took
        self._applier = applier
        self._waiting = waiting
        self._header = header
        self._turn = turn
        self._clock = clock
        self._listener = listener
        self._halt = halt
        self._entries: deque[Entry] = deque()
        self._paused = False
        self._when_idle: Deferred[None] | None = None
        self._stopped = False

    def connect(self, state: StateKeeper, sweeper: Sweeper) -> None:
        """Say where the state is kept and who sweeps; both need this object first."""
        self._state = state
        self._sweeper = sweeper

    def __len__(self) -> int:
        return len(self._entries)

    def stop(self) -> None:
        """Apply nothing more, not even what comes back from the database."""
        self._stopped = True

    def add(self, entries: Sequence[Entry]) -> None:
        """Apply these after what waits already, now if nothing has to be waited for."""
        self._entries.extend(entries)
        if not self._paused:
            self._run()

    def interrupt(self) -> Deferred[None]:
        """Drop what waits, because a snapshot takes its place. Fires when nothing is under way any more."""
        del_from = 1 if self._paused else 0  # the first entry may be the one that waits for the database
        while len(self._entries) > del_from:
            self._entries.pop()
        idle: Deferred[None] = Deferred()
        if self._paused:
            self._when_idle = idle
        else:
            idle.callback(None)
        return idle

    def restored(self, index: int, term: int) -> None:
        """The state is now another one, as of this entry."""
        self._entries.clear()
        self.index, self.term = index, term

    def _run(self) -> None:
        """Apply in order, until all is done or something has to be fetched first."""
        entries, listener = self._entries, self._listener
        applied_all = True
        began_s = self._clock.seconds()
        while entries:
            entry = entries[0]
            if not self._apply(entry):
                applied_all = False
                break
            entries.popleft()
            listener.entry_applied(len(entry.data))
        self.last_batch_s = self._clock.seconds() - began_s
        if applied_all:
            self._state.changed()
        listener.batch_applied(all_of_it=applied_all)
        if applied_all and self._state.behind:
            self._pause(self._state.flush())

    def _apply(self, entry: Entry, loan: Loan | None = None) -> bool:
        """Apply one entry and answer who waits for it; False if it has to wait for the database."""
        if entry.type is not EntryType.NORMAL:
            self.index, self.term = entry.index, entry.term
            self._apply_conf_change(entry)
            return True
        data = entry.data
        if not data:
            self.index = entry.index
            if entry.term != self.term:
                self.term = entry.term
                self._listener.term_began(entry.term)
            return True
        request = self._waiting.take_set(data) or self._decode(entry)
        if not isinstance(request, InternalRaftRequest):
            self.index, self.term = entry.index, entry.term
            self._apply_v2(request)
            return True
        applier = self._applier
        if loan is None and (applier.store.index.evicted or request.HasField("txn")):
            needs = tuple(applier.needs(request))
            if needs:
                self._pause(self._state.fetch(needs).addCallback(self._apply_with_loan, entry))
                return False
        # Before anybody hears of it: an answer may lead to a flush, whose batch says for which index it stands.
        self.index, self.term = entry.index, entry.term
        try:
            done = applier.apply(request)
        except KVError as error:
            if applier.store.changed:
                raise InvariantError(f"entry {entry.index} failed half-way") from error
            waiting = self._waiting.take(request.header.ID)
            if waiting is not None:
                waiting.fail(error)
        else:
            waiting = self._waiting.take(request.header.ID)
            if waiting is not None:
                waiting.reply(self._header.field(done.revision, self._listener.term) + done.body)
            if request.HasField("compaction"):
                self._sweeper.sweep()
        return True

    def _apply_v2(self, request: Request | PlainSet) -> None:
        try:
            event = self._applier.apply_v2(request)
        except V2Error as error:
            refused = self._waiting.take_v2(request.ID)
            if refused is not None:
                refused.fail(error)
            return
        if event is not None:
            told = self._waiting.take_v2(request.ID)
            if told is not None:
                told.applied(event)
        else:
            waiting = self._waiting.take(request.ID)
            if waiting is not None:
                waiting.reply(b"")

    def _decode(self, entry: Entry) -> InternalRaftRequest | Request:
        try:
            return decode_entry(entry.data)
        except ValueError as error:
            raise InvariantError(f"entry {entry.index} cannot be carried out: {error}") from error

    def _apply_conf_change(self, entry: Entry) -> None:
        if entry.type is EntryType.CONF_CHANGE_V2:
            return  # Raft's own affair: it says nothing of URLs and names, and members do not write it
        change = ConfChange.FromString(entry.data)
        waiting = self._waiting.take(change.id)
        try:
            self._applier.apply_conf_change(change)
        except (KVError, ValueError) as error:
            if waiting is not None:
                waiting.fail(error)
        else:
            self._listener.member_changed(change)
            if waiting is not None:
                waiting.reply(b"")

    def _apply_with_loan(self, loan: Loan, entry: Entry) -> None:
        if self._stopped or self._when_idle is not None:
            return
        store = self._applier.store
        store.lend(loan)
        try:
            with self._turn:
                self._apply(entry, loan)
        finally:
            store.lend(None)
        self._entries.popleft()
        self._listener.entry_applied(len(entry.data))

    def _pause(self, until: Deferred[Any]) -> None:
        self._paused = True
        until.addCallback(self._resume).addErrback(self._halt)

    def _resume(self, _: Any) -> None:
        self._paused = False
        if self._stopped:
            return
        if self._when_idle is not None:
            idle, self._when_idle = self._when_idle, None
            idle.callback(None)
            return
        with self._turn:
            self._run()
