"""A member without Raft, for tests of what changes the members: it applies at once, or when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.askedpeers import AskedPeers
from twistedkv.apply import Alarms, Applier
from twistedkv.errors import KVError, NoLeaderError
from twistedkv.lease import Lessor
from twistedkv.members import MemberInfo, Membership
from twistedkv.pb.raft_pb2 import ConfChange
from twistedkv.raft.messages import ProposalDropped
from twistedkv.raft.progress import Progress
from twistedkv.storage.keyindex import KeyIndex
from twistedkv.storage.mvcc import Store
from twistedkv.wire import HeaderEncoder

ME = 1
NOW_S = 1000.0


def started(member: int) -> MemberInfo:
    """A voter that runs."""
    return MemberInfo(member, (f"http://m{member}:2380",), f"m{member}", (f"http://m{member}:2379",))


def waiting(member: int) -> MemberInfo:
    """A voter that was added and never started."""
    return MemberInfo(member, (f"http://m{member}:2380",))


def learner(member: int) -> MemberInfo:
    """A learner that runs."""
    return MemberInfo(member, (f"http://m{member}:2380",), f"m{member}", is_learner=True)


@dataclass(frozen=True)
class Options:
    """What of the configuration counts."""

    strict_reconfig_check: bool = True


class ConnectedPeers(AskedPeers):
    """Peers that are heard of since moments that the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.since_s: dict[int, float] = {}

    def active_since(self, member_id: int) -> float | None:
        return self.since_s.get(member_id)


class ChangingMember:
    """The member with the id ``ME``, which leads unless the test says otherwise."""

    def __init__(self, members: Iterable[MemberInfo] = (started(ME),), strict: bool = True) -> None:
        self.member_id = ME
        self.cluster_id = 0xC1
        self.header = HeaderEncoder(self.cluster_id, ME)
        self.term = 3
        self.timeout_s = 7.0
        self.reactor = Clock()
        self.reactor.advance(NOW_S)
        self.config = Options(strict)
        self.peers = ConnectedPeers()
        membership = Membership({each.id: each for each in members})
        self.applier = Applier(Store(KeyIndex(1 << 20)), Lessor(2), Alarms(), membership, "3.5.0")
        self.leader = ME
        self.leader_changes: list[Callable[[], None]] = []
        self.transfers: list[int] = []
        self.matches = dict.fromkeys(membership.members, 100)
        self.holding = False  # keep changes until apply() is called
        self.changes: list[ConfChange] = []
        self.readable = True
        self._held: list[tuple[ConfChange, Deferred[None]]] = []

    @property
    def membership(self) -> Membership:
        return self.applier.membership

    @property
    def is_leader(self) -> bool:
        return self.leader == ME

    @property
    def is_learner(self) -> bool:
        return self.membership.members[ME].is_learner

    @property
    def progress(self) -> dict[int, Progress]:
        if not self.is_leader:
            return {}
        found = {}
        for member, match in self.matches.items():
            found[member] = Progress(match + 1, 256)
            found[member].match = match
        return found

    def reconfigure(self, change: ConfChange) -> Deferred[None]:
        applied: Deferred[None] = Deferred()
        self.changes.append(change)
        self._held.append((change, applied))
        if not self.holding:
            self.apply()
        return applied

    def apply(self) -> None:
        """Apply what is held."""
        held, self._held = self._held, []
        for change, applied in held:
            try:
                self.membership.check(change)
            except KVError as error:
                applied.errback(error)
            else:
                self.membership.apply(change)
                applied.callback(None)

    def when_leader(self, known: Callable[[], None]) -> Callable[[], None]:
        def look() -> None:
            if self.leader:
                cancel()
                known()

        def cancel() -> None:
            if look in self.leader_changes:
                self.leader_changes.remove(look)

        self.leader_changes.append(look)
        look()
        return cancel

    def when_readable(self, ready: Callable[[], None], refuse: Callable[[KVError], None]) -> None:
        if self.readable:
            ready()
        else:
            refuse(NoLeaderError())

    def transfer_leader(self, target: int) -> None:
        if not self.leader:
            raise ProposalDropped
        self.transfers.append(target)

    def lead_by(self, leader: int) -> None:
        """Another member leads, or nobody for 0."""
        self.leader = leader
        for tell in list(self.leader_changes):
            tell()
