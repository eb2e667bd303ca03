"""Members that break one promise each. A simulation that does not see it would prove nothing."""

from __future__ import annotations

from collections.abc import Sequence

from tests.simulation.observed import ObservedLog, ObservedMember, Parts
from twistedkv.leaseclock import LeaseClock
from twistedkv.raft.messages import Entry, HardState
from twistedkv.restore import Loaded
from twistedkv.watch import WatchHub


class ForgetfulLog(ObservedLog):
    """Says that entries are durable when they are not: whoever waits for them is answered before the sync."""

    def append(self, hard_state: HardState | None, entries: Sequence[Entry], sync: bool = True) -> None:
        super().append(hard_state, entries, sync=sync and not entries)


class VotelessLog(ObservedLog):
    """Does not write down for whom its member has voted."""

    def append(self, hard_state: HardState | None, entries: Sequence[Entry], sync: bool = True) -> None:
        super().append(hard_state and hard_state._replace(vote=0), entries, sync)


class HastyReader(ObservedMember):
    """Answers linearizable reads at once, out of what it has, while it takes itself for the leader."""

    @property
    def may_read(self) -> bool:
        return self.is_leader and not self.stopped


class SilentHub(WatchHub):
    """Does not tell its watchers of what a snapshot brought."""

    def restored(self) -> None:
        self.dispatch()
        self.told = self.revision


class SilentMember(ObservedMember):
    """Has such a hub."""

    def restored(self, loaded: Loaded) -> None:
        self.hub.__class__ = SilentHub
        super().restored(loaded)


class CertainClock(LeaseClock):
    """Takes itself for the leader without asking, and gives a lease no time on top."""

    @property
    def is_certain(self) -> bool:
        return self.leading


class CertainMember(ObservedMember):
    """Has such a clock, as etcd 3.5 has (etcd-io/etcd#20813)."""

    def start(self) -> None:
        self.leases.__class__ = CertainClock
        self.leases._extension_s = 0.0
        super().start()


ANSWERS_BEFORE_SYNC = Parts(log=ForgetfulLog)
FORGETS_ITS_VOTE = Parts(log=VotelessLog)
READS_WITHOUT_ASKING = Parts(member=HastyReader)
HIDES_WHAT_A_SNAPSHOT_BROUGHT = Parts(member=SilentMember)
RENEWS_WITHOUT_ASKING = Parts(member=CertainMember)
