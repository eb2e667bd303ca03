"""Parts of a member that do what theirs do, and tell of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.simulation.checks import Outcome
from tests.simulation.truth import V2Facts
from twistedkv.apply import Applier
from twistedkv.errors import KVError
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.raft.messages import Entry, HardState
from twistedkv.restore import Loaded
from twistedkv.server import Member
from twistedkv.storage.wal import WAL
from twistedkv.txn import Done
from twistedkv.v2errors import V2Error
from twistedkv.v2events import Action, Event
from twistedkv.v2request import PlainSet


class ObservedLog(WAL):
    """A log that tells what is written to it."""

    persists: Callable[[Sequence[Entry], int], None] | None = None

    def append(self, hard_state: HardState | None, entries: Sequence[Entry], sync: bool = True) -> None:
        if entries and self.persists is not None:
            before = entries[0].index - 1
            term = self._snapshot.term if before == self._snapshot.index else self._term(before)
            self.persists(entries, term or 0)
        super().append(hard_state, entries, sync)


class ObservedApplier(Applier):
    """A state machine that tells what comes of each request."""

    outcome: Callable[[Outcome], None]

    def apply(self, request: InternalRaftRequest) -> Done:
        before = len(self.store.batch.rows)
        changes_members = request.HasField("cluster_member_attr_set")
        try:
            done = super().apply(request)
        except KVError as error:
            self.outcome(Outcome(repr(error), (), changes_members, 0))
            raise
        rows = tuple(self.store.batch.rows[before:])
        revoked = request.lease_revoke.ID if request.HasField("lease_revoke") else 0
        self.outcome(Outcome(f"{done.revision} {done.body!r}", rows, changes_members, revoked))
        return done

    def apply_v2(self, request: Request | PlainSet) -> Event | None:
        try:
            event = super().apply_v2(request)
        except V2Error as error:
            self.outcome(Outcome(str(error), (), False, 0))
            raise
        facts = None
        if event is not None and event.action is not Action.GET:
            facts = V2Facts(event.index, event.action, event.node.key, event.node.value)
        method = "PUT" if isinstance(request, PlainSet) else request.Method
        self.outcome(Outcome(method, (), False, 0, facts))
        return event


class ObservedMember(Member):
    """A member that tells what it applies."""

    applied_one: Callable[[], None]
    has_loaded: Callable[[Loaded], None]

    def entry_applied(self, size_bytes: int) -> None:
        super().entry_applied(size_bytes)
        self.applied_one()

    def restored(self, loaded: Loaded) -> None:
        self.has_loaded(loaded)
        super().restored(loaded)


@dataclass(frozen=True, slots=True)
class Parts:
    """What processes are made of; a test that wants to see them fail puts a bad part in."""

    log: type[ObservedLog] = ObservedLog
    applier: type[ObservedApplier] = ObservedApplier
    member: type[ObservedMember] = ObservedMember
