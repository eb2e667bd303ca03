"""One clock for everything, and what each process sees of it: calls that come while it runs, and not after it died."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock
from zope.interface import implementer

START_S = 1_000_000.0  # what the clock shows first: members make ids out of it, and must not begin at 0


class PowerCut(BaseException):
    """The process ends here, in the middle of what it does. No ``except Exception`` stops it."""


class SimulatedClock(Clock):
    """A clock that jumps from one call to the next, in the order of their times and then of their making."""

    def __init__(self) -> None:
        super().__init__()
        self.rightNow = START_S
        self.steps = 0  # calls that were made
        self._heap: list[tuple[float, int, DelayedCall, ProcessTime | None]] = []
        self._numbers = count()

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> DelayedCall:
        """A call that nobody's death or pause concerns."""
        return self.call_for(None, delay, callable, args, kw)

    def call_for(
        self,
        owner: ProcessTime | None,
        delay_s: float,
        function: Callable[..., object],
        args: Sequence[object] = (),
        named: dict[str, object] | None = None,
    ) -> DelayedCall:
        """Call ``function`` as a deed of ``owner``: when it is due and ``owner`` runs, never if it is dead."""
        call = DelayedCall(self.rightNow + delay_s, function, args, named or {}, _nothing, self._moved, self.seconds)
        heappush(self._heap, (call.time, next(self._numbers), call, owner))
        return call

    def step(self, until_s: float) -> bool:
        """Make the next call that is due before ``until_s``; false if there is none, and then it is ``until_s``."""
        heap = self._heap
        while heap and heap[0][0] < until_s:
            due_s, number, call, owner = heappop(heap)
            if call.cancelled or call.called or (owner is not None and owner.dead):
                continue
            if call.getTime() > due_s:  # it was put off
                heappush(heap, (call.getTime(), number, call, owner))
                continue
            if owner is not None and owner.paused:
                owner.held.append((due_s, number, call, owner))
                continue
            self.rightNow = max(self.rightNow, due_s)
            self.steps += 1
            call.called = 1
            with suppress(PowerCut):
                call.func(*call.args, **call.kw)
                if owner is not None and not owner.dead:
                    owner.acted()
            return True
        self.rightNow = max(self.rightNow, until_s)
        return False

    def give_back(self, held: list[Any]) -> None:
        """Calls that came due while their owner was paused are due now."""
        for item in held:
            heappush(self._heap, item)

    def forget(self) -> None:
        """Nothing comes any more."""
        self._heap.clear()

    def calls_of(self, owner: ProcessTime) -> list[DelayedCall]:
        """What a process has planned, in no order."""
        items = [*self._heap, *owner.held]
        return [call for _, _, call, whose in items if whose is owner and not (call.cancelled or call.called)]

    def _moved(self, call: DelayedCall) -> None:
        """``call`` was reset to an earlier time; its former place in the heap finds that it was made."""
        owner = next(owner for _, _, each, owner in self._heap if each is call)
        heappush(self._heap, (call.getTime(), next(self._numbers), call, owner))


@implementer(IReactorTime)
class ProcessTime:
    """The reactor of one process from its start to its end.

    Args:
        acted: called after each of its calls.
    """

    def __init__(self, clock: SimulatedClock, acted: Callable[[], None]) -> None:
        self.clock = clock
        self.acted = acted
        self.dead = False
        self.held: list[Any] = []  # calls that came due while it was paused
        self._pauses = 0  # reasons to be paused
        self._surroundings: set[DelayedCall] = set()  # calls of the machine and the network on its behalf

    @property
    def paused(self) -> bool:
        """Whether it is stopped, as by SIGSTOP; its clock goes on."""
        return self._pauses > 0

    def seconds(self) -> float:
        """See :class:`IReactorTime`."""
        return self.clock.rightNow

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> DelayedCall:
        """See :class:`IReactorTime`."""
        return self.clock.call_for(self, delay, callable, args, kw)

    def getDelayedCalls(self) -> list[DelayedCall]:
        """See :class:`IReactorTime`: what the program itself has planned."""
        return [call for call in self.clock.calls_of(self) if call not in self._surroundings]

    def from_outside(self, delay_s: float, function: Callable[..., object], *args: object) -> DelayedCall:
        """Something that the network, a disk or a client will have this process do."""
        call = self.clock.call_for(self, delay_s, function, args)
        self._surroundings = {each for each in self._surroundings if each.active()} | {call}
        return call

    def pause_for(self, seconds: float) -> None:
        """Stop it for a while; several pauses may overlap."""
        self._pauses += 1
        self.clock.callLater(seconds, self._resume)

    def _resume(self) -> None:
        self._pauses -= 1
        if not self._pauses:
            held, self.held = self.held, []
            self.clock.give_back(held)


def _nothing(_: DelayedCall) -> None:
    """A call that is cancelled stays in the heap until its time."""
