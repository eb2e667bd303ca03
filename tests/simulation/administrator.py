"""An administrator: changes the members one at a time, moves the leadership, and compacts.

Only what an operator may do without losing the cluster: the voters that stay are a quorum of those before, in case
nobody who goes lives to tell them. A new member has a machine of its own, on which it begins with an empty log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred

from tests.simulation.clients import Surroundings
from tests.simulation.machine import Machine
from twistedkv.errors import KVError
from twistedkv.members import MemberInfo
from twistedkv.raft.messages import ProposalDropped, Role

MOST_VOTERS = 6
LEAST_VOTERS = 3  # of which one may go
PATIENCE_S = 12.0  # longer than a member takes to answer
UNSURE_S = 15.0  # after a change of which nobody knows what came of it
DOWN_S = 4.0  # until a machine of a removed member is switched off


class Cluster(Surroundings, Protocol):
    """What the administrator works on; see :class:`tests.simulation.world.World`."""

    machines: dict[int, Machine]

    def add_machine(self, info: MemberInfo) -> None:
        """A machine for a member that was added."""

    def free_url(self, member_id: int) -> None:
        """A member was removed; its place may be taken by another one."""

    def new_url(self) -> str:
        """Where a new member will be reached, or one that was there before under another id."""


class Errand:
    """Something that a process is asked to do; see :class:`tests.simulation.process.Call`."""

    def __init__(self, done: Deferred[Any]) -> None:
        self.done = done

    def broken(self) -> None:
        """The process died; the administrator loses its patience in time."""

    def hang_up(self) -> None:
        """The process ends the connection."""
        self.done.cancel()


class Administrator:
    """One who changes things.

    Args:
        world: what it works on.
        changes: whether of members, too.
        pause_s: between two deeds, on average.
    """

    def __init__(self, world: Cluster, *, changes: bool, pause_s: float) -> None:
        self.busy = False
        self.done: dict[str, int] = {}  # how often what has worked
        self._world = world
        self._changes = changes
        self._pause_s = pause_s
        self._unsure_until_s = 0.0

    def start(self) -> None:
        """Begin, and go on until the world is over."""
        self._rest()

    def _rest(self) -> None:
        self.busy = False
        if not self._world.over:
            self._world.clock.callLater(self._world.random.expovariate(1 / self._pause_s), self._next)

    def _next(self) -> None:
        world, random = self._world, self._world.random
        machine = world.pick()
        if machine is None or world.over:
            self._rest()
            return
        deeds: list[Callable[[Machine], bool]] = [self._transfer, self._compact]
        if self._changes and world.clock.seconds() > self._unsure_until_s:
            deeds += [self._add, self._add, self._promote, self._promote, self._remove, self._remove]
        if not random.choice(deeds)(machine):
            self._rest()

    # --- deeds; each says whether it was begun -------------------------------------------------------

    def _transfer(self, machine: Machine) -> bool:
        member = machine.member
        assert member is not None
        target = self._world.random.choice(sorted(self._world.truth.membership.members))
        try:
            member.transfer_leader(target)
        except ProposalDropped:
            return False
        self._count("transfer")
        return False

    def _compact(self, machine: Machine) -> bool:
        member = machine.member
        assert member is not None
        newest = member.revision
        revision = self._world.random.randrange(max(newest - 40, 1), newest + 1)
        self._wait(machine, "compact", lambda: member.compact(revision))
        return True

    def _add(self, machine: Machine) -> bool:
        world, membership = self._world, self._world.truth.membership
        if len(membership.members) >= MOST_VOTERS:
            return False
        learner = world.random.random() < 0.6
        url = world.new_url()
        process = machine.process
        assert process is not None
        adding = process.reconfiguration.add

        def added(result: Any) -> None:
            world.add_machine(result.member)

        self._wait(machine, "add", lambda: Deferred.fromCoroutine(adding([url], learner)).addCallback(added))
        return True

    def _promote(self, machine: Machine) -> bool:
        membership = self._world.truth.membership
        learners = [member.id for member in membership.listed() if member.is_learner]
        process = machine.process
        if not learners or process is None:
            return False
        promoting = process.reconfiguration.promote
        self._wait(machine, "promote", lambda: Deferred.fromCoroutine(promoting(learners[0], lambda: True)))
        return True

    def _remove(self, machine: Machine) -> bool:
        world, membership = self._world, self._world.truth.membership
        voters = [member.id for member in membership.voters()]
        learners = [member.id for member in membership.listed() if member.is_learner]
        candidates = learners + (voters if len(voters) >= LEAST_VOTERS else [])
        if not candidates:
            return False
        leaders = [each for each in candidates if self._leads(each)]
        removed = world.random.choice(leaders if leaders and world.random.random() < 0.3 else candidates)
        process = machine.process
        assert process is not None
        removing = process.reconfiguration.remove

        def gone(_: Any) -> None:
            world.free_url(removed)
            world.clock.callLater(world.random.random() * DOWN_S, self._switch_off, removed)

        self._wait(machine, "remove", lambda: Deferred.fromCoroutine(removing(removed)).addCallback(gone))
        return True

    def _switch_off(self, member_id: int) -> None:
        machine = self._world.machines.get(member_id)
        if machine is not None:
            machine.retired = True
            machine.kill(power_cut=False)

    def _leads(self, member_id: int) -> bool:
        machine = self._world.machines.get(member_id)
        member = None if machine is None else machine.member
        return member is not None and member._node.role is Role.LEADER

    # --- what comes of it ----------------------------------------------------------------------------

    def _wait(self, machine: Machine, what: str, begin: Callable[[], Deferred[Any]]) -> None:
        """Have a member do something, and wait until it has answered, or for so long that it will not."""
        world, process = self._world, machine.process
        assert process is not None
        over = False

        def end() -> None:
            nonlocal over
            if not over:
                over = True
                if patience.active():
                    patience.cancel()
                self._rest()

        def worked(_: Any) -> None:
            world.note(what, machine.member_id)
            self._count(what)
            end()

        def failed(failure: Any) -> None:
            # What went wrong besides is a violation, of which the world hears.
            failure.trap(KVError, ValueError, CancelledError)
            world.note(what, machine.member_id, str(failure.value))
            unsure()
            end()

        def unsure() -> None:
            self._unsure_until_s = world.clock.seconds() + UNSURE_S

        def late() -> None:
            unsure()
            end()

        def ask() -> None:
            if not over:
                errand = Errand(begin())
                process.calls[errand] = None
                errand.done.addCallbacks(worked, failed)

        self.busy = True
        patience = world.clock.callLater(PATIENCE_S, late)
        process.time.from_outside(0.001, ask)

    def _count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1
