"""What goes wrong: crashes, power cuts, pauses, partitions, and disks that are slow, full or broken."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from tests.simulation.machine import Machine
from tests.simulation.network import Network

LONGEST_S = 6.0  # that a fault lasts


class Cluster(Protocol):
    """What goes wrong with; see :class:`tests.simulation.world.World`."""

    clock: Any
    random: Random
    network: Network
    machines: dict[int, Machine]

    @property
    def over(self) -> bool:
        """Whether nothing is to go wrong any more."""

    def note(self, what: str, member_id: int, *facts: Any) -> None:
        """Keep a line of what happened."""


class Faults:
    """Has one thing after the other go wrong, and most of it go right again.

    Args:
        cluster: whose faults.
        kinds: which ones; see :data:`KINDS`.
        pause_s: between two, on average.
    """

    def __init__(self, cluster: Cluster, kinds: list[str], pause_s: float) -> None:
        self._cluster = cluster
        self._kinds = kinds
        self._pause_s = pause_s

    def start(self) -> None:
        """Begin, and go on until the world is over."""
        if self._kinds:
            self._rest()

    def _rest(self) -> None:
        cluster = self._cluster
        if not cluster.over:
            cluster.clock.callLater(cluster.random.expovariate(1 / self._pause_s), self._next)

    def _next(self) -> None:
        cluster = self._cluster
        if not cluster.over:
            kind = cluster.random.choice(self._kinds)
            cluster.note("fault", 0, kind)
            KINDS[kind](cluster)
        self._rest()


def heal(cluster: Cluster) -> None:
    """Everything works from now on."""
    cluster.network.heal()
    for machine in cluster.machines.values():
        machine.heal()


def _some(cluster: Cluster) -> list[Machine]:
    """A few of the machines, at least one, and a leader's more often than others."""
    random = cluster.random
    machines = [machine for machine in cluster.machines.values() if not machine.retired]
    leading = [machine for machine in machines if machine.member is not None and machine.member.is_leader]
    if leading and random.random() < 0.4:
        return leading
    return random.sample(machines, min(len(machines), random.choice([1, 1, 1, 2])))


def _later(cluster: Cluster, what: Callable[..., None], *arguments: Any) -> None:
    """Have it go right again after a while."""
    cluster.clock.callLater(cluster.random.random() ** 2 * LONGEST_S, what, *arguments)


def _kill(cluster: Cluster) -> None:
    for machine in _some(cluster):
        machine.kill(power_cut=cluster.random.random() < 0.6)
        _later(cluster, machine.start)


def _kill_all(cluster: Cluster) -> None:
    for machine in cluster.machines.values():
        machine.kill(power_cut=True)
        _later(cluster, machine.start)


def _cut_power_writing(cluster: Cluster) -> None:
    for machine in _some(cluster):
        machine.cut_power_soon(cluster.random.randrange(1, 6))
        _later(cluster, machine.start)


def _stop(cluster: Cluster) -> None:
    for machine in _some(cluster):
        machine.stop()
        _later(cluster, machine.start)


def _rivals(cluster: Cluster) -> None:
    """The leader restarts, and two who do not hear each other want to lead, one soon after the other."""
    random = cluster.random
    leading = [machine for machine in cluster.machines.values() if machine.member is not None]
    leading = [machine for machine in leading if machine.member is not None and machine.member.is_leader]
    others = [machine for machine in cluster.machines.values() if machine not in leading and not machine.retired]
    for machine in leading:
        machine.kill(power_cut=True)
        cluster.clock.callLater(0.05, machine.start)
    delay_s = 0.1
    for machine in random.sample(others, min(len(others), 2)):
        for other in others:
            if other is not machine and random.random() < 0.7:
                cluster.network.cut(machine.member_id, other.member_id)
        cluster.clock.callLater(delay_s, _campaign, machine)
        delay_s += random.random() * 0.3
    _later(cluster, cluster.network.heal)


def _campaign(machine: Machine) -> None:
    """What a member does when it has not heard of a leader for long."""
    member = machine.member
    if member is not None and not member.stopped:
        member._node.campaign()
        member.stirred()


def _pause(cluster: Cluster) -> None:
    for machine in _some(cluster):
        if machine.process is not None:
            machine.process.time.pause_for(cluster.random.random() ** 2 * LONGEST_S)


def _isolate(cluster: Cluster) -> None:
    """Some are cut off from everybody else, both ways or one way."""
    network, random = cluster.network, cluster.random
    both = random.random() < 0.6
    outwards = random.random() < 0.5
    for machine in _some(cluster):
        for other in cluster.machines:
            if both or outwards:
                network.cut(machine.member_id, other)
            if both or not outwards:
                network.cut(other, machine.member_id)
    _later(cluster, network.heal)


def _split(cluster: Cluster) -> None:
    """Two halves, with or without one who hears both."""
    members = list(cluster.machines)
    cluster.random.shuffle(members)
    middle = len(members) // 2
    bridge = cluster.random.random() < 0.3
    for one in members[:middle]:
        for other in members[middle + bridge :]:
            cluster.network.cut(one, other)
            cluster.network.cut(other, one)
    _later(cluster, cluster.network.heal)


def _cut_some(cluster: Cluster) -> None:
    """Single ways between members."""
    members = list(cluster.machines)
    for _ in range(cluster.random.randrange(1, 5)):
        cluster.network.cut(cluster.random.choice(members), cluster.random.choice(members))
    _later(cluster, cluster.network.heal)


def _slow_log(cluster: Cluster) -> None:
    for machine in _some(cluster):
        machine.condition.log_sync_s = cluster.random.choice([0.005, 0.03, 0.3])
        _take(machine)
        _later(cluster, machine.heal)


def _full_log(cluster: Cluster) -> None:
    for machine in _some(cluster):
        machine.condition.log_full = True
        _take(machine)
        _later(cluster, machine.heal)


def _broken_log(cluster: Cluster) -> None:
    for machine in _some(cluster):
        machine.break_log()
        _later(cluster, machine.start)


def _slow_database(cluster: Cluster) -> None:
    for machine in _some(cluster):
        machine.condition.database_s = cluster.random.choice([0.02, 0.2, 1.0])
        _later(cluster, machine.heal)


def _refusing_database(cluster: Cluster) -> None:
    for machine in _some(cluster):
        machine.condition.database_refuses = True
        _take(machine)
        _later(cluster, machine.heal)


def _take(machine: Machine) -> None:
    if machine.process is not None:
        machine.process.take_condition()


KINDS: dict[str, Callable[[Cluster], None]] = {
    "kill": _kill,
    "kill all": _kill_all,
    "cut power writing": _cut_power_writing,
    "stop": _stop,
    "rivals": _rivals,
    "pause": _pause,
    "isolate": _isolate,
    "split": _split,
    "cut some": _cut_some,
    "slow log": _slow_log,
    "full log": _full_log,
    "broken log": _broken_log,
    "slow database": _slow_database,
    "refusing database": _refusing_database,
}
