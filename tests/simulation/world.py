"""One run: what a seed decides, the cluster and its clients, faults for a while, peace, and the judgement."""

from __future__ import annotations

import gc
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from tests.simulation.administrator import Administrator
from tests.simulation.checks import Checks
from tests.simulation.clients import Client
from tests.simulation.clock import START_S, PowerCut, SimulatedClock
from tests.simulation.faults import Faults, heal
from tests.simulation.history import History
from tests.simulation.leasing import Owner, Promises
from tests.simulation.machine import Machine
from tests.simulation.network import PERFECT, Network
from tests.simulation.observed import Parts
from tests.simulation.plan import Plan
from tests.simulation.truth import Violation
from tests.simulation.v2clients import V2Client
from tests.simulation.watching import Watcher
from twistedkv.config import Config
from twistedkv.configload import load_config
from twistedkv.founding import Founding, new_cluster
from twistedkv.lease import Lease
from twistedkv.members import MemberInfo
from twistedkv.optiontypes import InitialCluster, parse_url
from twistedkv.raft.messages import HardState, Message, MessageType, Role
from twistedkv.storage.mvcc import hash_kv
from twistedkv.storage.wal import WALFailedError

TRACE_LINES = 400  # shown of a run that failed
SETTLE_S = 100.0  # for everything to come right, once nothing goes wrong any more
_MEMORY = "/dev/shm"  # of Linux
EXPECTED_FAILURES = (PowerCut, WALFailedError)  # that a member may log with a traceback


class World:
    """One run of one seed.

    Args:
        seed: decides everything.
        directory: for the members' files.
        parts: what processes are made of.
        keep: how many lines of what happened are kept; None for all.
        changes: what is to be other in the plan than the seed has it.
    """

    def __init__(
        self,
        seed: int,
        directory: Path,
        parts: Parts | None = None,
        keep: int | None = TRACE_LINES,
        **changes: Any,
    ) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.plan = replace(Plan.draw(self.random), **changes)
        self.clock = SimulatedClock()
        self.trace: deque[tuple[Any, ...]] = deque(maxlen=keep)
        self.counts: Counter[str] = Counter()  # of what happened, by kind
        self.promises = Promises()
        self.checks = Checks(lambda lease_id: self.promises.ended(lease_id, self.clock.seconds()))
        self.truth = self.checks.truth
        self.parts = parts or Parts()
        self.network = Network(self.clock, self.random, self)
        self.history = History(self.truth)
        self.machines: dict[int, Machine] = {}
        self.over = False  # nothing new begins
        self._directory = directory
        self._violation: Violation | None = None
        self._buried = False
        self._urls = 0
        self._free_urls: list[str] = []  # of members that were removed
        self._watchers: list[Watcher] = []
        self._clients: list[Client] = []
        self.administrator = Administrator(self, changes=self.plan.reconfigures, pause_s=1.0)

    # --- what happens ------------------------------------------------------------------------------

    def note(self, what: str, member_id: int, *facts: Any) -> None:
        """Keep a line of what happened; it is put into words when somebody wants to read it."""
        self.counts[what] += 1
        self.trace.append((self.clock.rightNow, what, member_id, *facts))

    def violate(self, violation: Violation) -> None:
        """A promise was broken: the run is over."""
        if self._violation is None:
            self._violation = violation
            self.note("VIOLATION", 0, str(violation))

    def lines(self) -> list[str]:
        """What happened last, in words."""
        return [_line(entry) for entry in self.trace]

    def sent(self, message: Message) -> None:
        """See :class:`~tests.simulation.network.Observer`. Some do not live long after they have voted."""
        try:
            self.checks.sent(message)
        except Violation as violation:
            self.violate(violation)
        is_vote = message.type is MessageType.VOTE_RESPONSE and not (message.reject or self.over)
        if is_vote and self.plan.deadly_votes and self.random.random() < 0.3:
            machine = self.machines[message.sender]
            self.clock.callLater(self.random.random() * 0.01, machine.kill, power_cut=True)
            self.clock.callLater(0.01 + self.random.random() * 0.1, machine.start)

    def damaged_snapshot_taken(self, target: int) -> None:
        """See :class:`~tests.simulation.network.Observer`."""
        self.violate(Violation(f"{target:x} has taken a snapshot that was damaged on its way"))

    def installing(self, member_id: int) -> None:
        """A process begins to install a snapshot; some do not get far."""
        machine = self.machines[member_id]
        if not self.over and self.random.random() < 0.3:
            self.clock.callLater(self.random.random() * 0.01, machine.kill, power_cut=self.random.random() < 0.7)
            self.clock.callLater(self.random.random() * 3, machine.start)

    def pick(self, sticky: Machine | None = None) -> Machine | None:
        """Some machine whose process serves clients, or the same as before."""
        if sticky is not None and sticky.process is not None and sticky.process.ready:
            return sticky
        serving = [each for each in self.machines.values() if each.process is not None and each.process.ready]
        return self.random.choice(serving) if serving else None

    def _logged(self, event: LogEvent) -> None:
        """A member logs something."""
        failure = event.get("log_failure")
        ignored = (*EXPECTED_FAILURES, RuntimeError) if self._buried else EXPECTED_FAILURES  # coroutines cut short
        if failure is not None and not failure.check(*ignored):
            self.violate(Violation(f"logged: {formatEvent(event)}: {failure.getTraceback()}"))
        self.note("log", 0, formatEvent(event).replace(str(self._directory), ""))

    # --- machines ----------------------------------------------------------------------------------

    def new_url(self) -> str:
        """Where a new member will be reached, or one that was there before under another id."""
        if self._free_urls and self.random.random() < 0.5:
            return self._free_urls.pop()
        self._urls += 1
        return f"https://10.0.0.{self._urls}:2380"

    def free_url(self, member_id: int) -> None:
        """A member was removed; its place may be taken by another one."""
        machine = self.machines.get(member_id)
        if machine is not None:
            self._free_urls.append(str(machine.config.initial_advertise_peer_urls[0]))

    def add_machine(self, info: MemberInfo) -> None:
        """A machine for a member that was added, on which it starts."""
        if info.id not in self.machines:
            others = {each.id: each.peer_urls for each in self.truth.membership.listed() if each.id != info.id}
            cluster = next(iter(self.machines.values())).founding.cluster_id
            founding = Founding(info.id, cluster, (), HardState(), others)
            config = self._config(f"m{len(self.machines) + 1}", info.peer_urls[0])
            machine = self.machines[info.id] = Machine(self, config, founding)
            self.clock.callLater(self.random.random(), machine.start)

    def _found(self) -> None:
        cluster = InitialCluster(
            {f"m{number}": (parse_url(self.new_url()),) for number in range(1, self.plan.size + 1)}
        )
        for name, urls in cluster.items():
            founding = new_cluster(cluster, name, "simulation")
            self.machines[founding.member_id] = Machine(self, self._config(name, str(urls[0])), founding)
            self.checks.persists(founding.entries, 0)
        for machine in self.machines.values():
            self.clock.callLater(self.random.random(), machine.start)

    def _config(self, name: str, url: str) -> Config:
        plan = self.plan
        options = {
            "name": name,
            "data-dir": str(self._directory / name),
            "listen-peer-urls": url,
            "initial-advertise-peer-urls": url,
            "listen-client-urls": url.replace("2380", "2379"),
            "advertise-client-urls": url.replace("2380", "2379"),
            "heartbeat-interval": "100",
            "election-timeout": "500",
            "snapshot-count": str(plan.snapshot_count),
            "experimental-snapshot-catchup-entries": str(plan.catch_up_entries),
            "value-cache-bytes": str(plan.value_cache_bytes),
            "pre-vote": "true" if plan.pre_vote else "false",
            "experimental-corrupt-check-time": "2s" if plan.compares else "0",
            "experimental-initial-corrupt-check": "true" if plan.compares else "false",
            "strict-reconfig-check": "true" if plan.strict else "false",
        }
        return load_config(options, {})

    # --- the run -----------------------------------------------------------------------------------

    def run(self) -> None:
        """All of it.

        Raises:
            Violation: a promise was broken.
        """
        # What is left of dead processes must not be collected while others run: it would stir, and be heard.
        gc.disable()
        observer: Any = self._logged
        globalLogPublisher.addObserver(observer)
        try:
            self._begin()
            self._run_until(self.clock.seconds() + self.plan.chaos_s)
            self._make_peace()
            self._settle()
            self._judge()
            if self.random.random() < 0.4:
                self._cut_all_power()
                self._settle()
                self._judge()
        finally:
            self._bury()
            globalLogPublisher.removeObserver(observer)
            gc.enable()
        if self._violation is not None:
            raise self._violation

    def _bury(self) -> None:
        """Let go of all processes. Failures that nobody has looked at show only now."""
        for machine in self.machines.values():
            machine.kill(power_cut=False)
        self._buried = True
        self.machines.clear()
        self._watchers.clear()
        self._clients.clear()
        self.clock.forget()
        gc.collect()

    def _begin(self) -> None:
        plan = self.plan
        self._found()
        self.network.quality = plan.quality
        keys = [b"k%d" % number for number in range(plan.keys)]
        self._clients = [
            Client(self, f"c{number}", keys, plan.client_pause_s, plan.value_bytes) for number in range(plan.clients)
        ]
        for client in self._clients:
            client.start()
        for number in range(plan.watchers):
            key, end = (keys[0], b"") if number == 1 else (b"k", b"m")
            start = self.random.choice([1, 1, 20])
            watcher = Watcher(self, f"w{number}", key, end, start, self.random.random() < 0.5)
            self._watchers.append(watcher)
            self.clock.callLater(self.random.random() * plan.chaos_s / 2, watcher.start)
        for number in range(plan.owners):
            Owner(self, self.promises, b"l%d" % number).start()
        for _ in range(plan.v2_clients):
            V2Client(self).start()
        self.clock.callLater(2.0, Faults(self, list(plan.faults), plan.fault_pause_s).start)
        self.clock.callLater(2.0, self.administrator.start)

    def _run_until(self, end_s: float) -> None:
        step = self.clock.step
        while step(end_s):
            if self._violation is not None:
                raise self._violation
        if self._violation is not None:
            raise self._violation

    def _make_peace(self) -> None:
        """From now on nothing goes wrong, and clients begin nothing new."""
        self.note("peace", 0)
        self.over = True
        self.network.quality = PERFECT
        heal(self)
        for machine in self.machines.values():
            self.clock.callLater(self.random.random(), machine.start)

    def _settle(self) -> None:
        """Everything comes right within some time.

        Raises:
            Violation: it does not.
        """
        end_s = self.clock.seconds() + SETTLE_S
        reason: str | None = "it was not looked at"
        while reason is not None:
            if self.clock.seconds() > end_s:
                raise Violation(f"{SETTLE_S:.0f} s after the last fault: {reason}")
            self._run_until(self.clock.seconds() + 0.5)
            self._mend()
            reason = self._unsettled()

    def _mend(self) -> None:
        """What an operator does in the end: start what belongs to the cluster, and switch off what does not."""
        membership = self.truth.membership
        for info in membership.listed():
            self.add_machine(info)
        for machine in self.machines.values():
            if machine.member_id in membership.removed:
                machine.retired = True
                machine.kill(power_cut=False)
            elif machine.removed:
                raise Violation(f"{machine.name} was told that it was removed, and it was not")
            elif not machine.runs:
                machine.start()

    def _unsettled(self) -> str | None:
        """What has not come right yet; None if all has."""
        members = [machine.member for machine in self._belonging()]
        if any(member is None for member in members):
            return "a member does not run"
        alive = [member for member in members if member is not None]
        leaders = [member for member in alive if member._node.role is Role.LEADER]
        if not leaders:
            return "nobody leads"
        leader = max(leaders, key=lambda member: member.term)
        last = leader._node.log.last_index
        for member in alive:
            log = member._node.log
            if not member.applied == member.committed == log.last_index == last:
                return f"{member.config.name} has applied {member.applied} of {last}"
            if member.pending or member.leader != leader.member_id or member._writer.busy:
                return f"{member.config.name} is not at rest"
            if member.disk_trouble is not None:
                return f"{member.config.name} says that {member.disk_trouble}"
            if member.sweeper.done < member.store.compacted:
                return f"{member.config.name} has not swept up to {member.store.compacted}"
            if member.directory.first_end_ns is not None:
                return f"{member.config.name} has a key of the v2 API that should have gone"
            if len(member.lessor):
                lease: Lease = next(iter(member.lessor))
                return f"{member.config.name} has the lease {lease.id:x}, which nobody renews"
            if not self.machines[member.member_id].process.ready:  # type: ignore[union-attr]
                return f"{member.config.name} does not serve"
        if any(client.busy for client in self._clients):
            return "a client waits"
        for watcher in self._watchers:
            if not watcher.complete:
                return f"a watch has not seen {watcher._expected()}"
        return None

    def _belonging(self) -> Iterable[Machine]:
        return [self.machines[each.id] for each in self.truth.membership.listed() if each.id in self.machines]

    def _cut_all_power(self) -> None:
        """Whatever was acknowledged is on the disks."""
        self.note("all power", 0)
        for machine in self.machines.values():
            machine.kill(power_cut=True)
            self.clock.callLater(self.random.random(), machine.start)

    # --- the judgement -----------------------------------------------------------------------------

    def _judge(self) -> None:
        """At rest all members have one state, which is what the clients were told.

        Raises:
            Violation: it is not so.
        """
        truth = self.truth
        if truth.revision < self.history.revision:
            raise Violation(f"revision {self.history.revision} was acknowledged, and there is {truth.revision}")
        hashes: dict[str, int] = {}
        for machine in self._belonging():
            member = machine.member
            assert member is not None
            if member.revision != truth.revision:
                raise Violation(f"{machine.name} is at revision {member.revision}, and not at {truth.revision}")
            if member.alarms:
                raise Violation(f"{machine.name} has alarms: {member.alarms.listed()}")
            self.checks.has_state(machine.name, member.store)
            revision, compacted = member.revision, member.store.compacted
            member.read_backend(hash_kv, revision, compacted).addCallbacks(
                _keeping(hashes, machine.name), lambda failure: self.violate(Violation(failure.getTraceback()))
            )
        self._run_until(self.clock.seconds() + 1)
        if len(hashes) != len(list(self._belonging())) or len(set(hashes.values())) != 1:
            raise Violation(f"HashKV differs: {hashes}")
        self.history.check()


def _keeping(hashes: dict[str, int], name: str) -> Callable[[int], None]:
    def keep(value: int) -> None:
        hashes[name] = value

    return keep


def _line(entry: tuple[Any, ...]) -> str:
    at_s, what, member_id, *facts = entry
    return f"{at_s - START_S:9.4f} {member_id & 0xFFFF:4x} {what} {' '.join(map(_words, facts))}"


def _words(fact: object) -> str:
    """One fact of a line; messages in short, with the last four digits of ids."""
    if not isinstance(fact, Message):
        return str(fact)
    parts = [f"{fact.type.name} from {fact.sender & 0xFFFF:x}, term {fact.term}"]
    if fact.index or fact.log_term:
        parts.append(f"index {fact.index}/{fact.log_term}")
    if fact.entries:
        parts.append(f"{len(fact.entries)} entries up to {fact.entries[-1].index}/{fact.entries[-1].term}")
    if fact.commit:
        parts.append(f"commit {fact.commit}")
    if fact.snapshot is not None:
        parts.append(f"snapshot {fact.snapshot.meta.index}")
    if fact.reject:
        parts.append(f"rejects, hint {fact.reject_hint}")
    if fact.context:
        parts.append(f"context {fact.context.hex()}")
    return ", ".join(parts)


def scratch() -> TemporaryDirectory[str]:
    """Room for the members' files; in memory where the system offers that, since some of them are synced in earnest."""
    return TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None)


def run_seed(seed: int, directory: Path, parts: Parts | None = None, **changes: Any) -> World:
    """Run one seed; for the arguments see :class:`World`.

    Raises:
        Violation: a promise was broken; the text has the seed and what happened last.
    """
    world = World(seed, directory, parts, **changes)
    try:
        world.run()
    except Violation as violation:
        lines = "\n".join(world.lines())
        raise Violation(f"seed {seed}: {violation}\n{world.plan}\n{lines}\nseed {seed}: {violation}") from violation
    return world
