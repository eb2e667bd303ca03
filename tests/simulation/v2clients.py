"""Clients of the v2 API: what they are told has happened, once, and after all that anybody was told before they asked.

That all members carry out the same, and keep the same tree, is checked as for everything else
(:mod:`tests.simulation.checks`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from tests.simulation.clients import Surroundings
from tests.simulation.process import Process
from tests.simulation.truth import V2Facts, Violation
from twistedkv.errors import KVError
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.v2errors import V2Error
from twistedkv.v2events import Event

PAUSE_S: Final = 0.5
PATIENCE_S: Final = 9.0
PATHS: Final = (b"/1/a", b"/1/d/a", b"/1/d/e/a", b"/1/d", b"/1/_h", b"/1/a/under")
CONDITIONS: Final[tuple[dict[str, Any], ...]] = (
    *({}, {}, {"PrevExist": True}, {"PrevExist": False}),
    *({"PrevValue": b"v1"}, {"PrevExist": True, "Refresh": True}, {"Dir": True}),
)


class V2Client:
    """One client, which asks some member for one thing after the other.

    Args:
        world: around it.
    """

    def __init__(self, world: Surroundings) -> None:
        self._world = world

    def start(self) -> None:
        """Begin, and go on until the world is over."""
        world = self._world
        if not world.over:
            world.clock.callLater(world.random.expovariate(1 / PAUSE_S), self._ask)

    def _ask(self) -> None:
        machine = self._world.pick()
        process = None if machine is None else machine.process
        if process is None or process.member is None:
            self.start()
            return
        attempt = V2Attempt(self._world, process, self.start)
        process.calls[attempt] = None
        request = self._request()
        propose = partial(process.member.propose_v2, plain=plain(request))
        process.time.from_outside(0.001, propose, request.SerializeToString(), attempt)

    def _request(self) -> Request:
        random = self._world.random
        path = random.choice(PATHS)
        kind = random.random()
        if kind < 0.15:
            return Request(Method="POST", Path=path, Val=b"v")
        if kind < 0.35:
            return Request(Method="DELETE", Path=path, Recursive=random.random() < 0.5, Dir=random.random() < 0.5)
        request = Request(Method="PUT", Path=path, Val=b"v%d" % random.randrange(3), **random.choice(CONDITIONS))
        if random.random() < 0.3:
            request.Expiration = int((self._world.clock.seconds() + random.uniform(0, 4)) * 1e9)
        return request


def plain(request: Request) -> tuple[str, str] | None:
    """Path and value of a request that says nothing else, as who proposes for clients tells them."""
    bare = Request(Method="PUT", Path=request.Path, Val=request.Val)
    return (request.Path.decode(), request.Val.decode()) if request == bare else None


class V2Attempt:
    """One request; a waiter, and a call that a process is at work on."""

    def __init__(self, world: Surroundings, process: Process, over: Callable[[], None]) -> None:
        self._world = world
        self._process = process
        self._over = over
        self._done = False
        self._floor = world.truth.v2_acknowledged
        self._patience = world.clock.callLater(PATIENCE_S, self._end)

    def applied(self, event: Event) -> None:
        """It happened."""
        truth = self._world.truth
        facts = V2Facts(event.index, event.action, event.node.key, event.node.value)
        if truth.v2_events.get(event.index) != facts:
            self._world.violate(Violation(f"{facts} was acknowledged, and it is {truth.v2_events.get(event.index)}"))
        if event.index <= self._floor:
            self._world.violate(Violation(f"{facts} was acknowledged, and {self._floor} was before the question"))
        if not self._done:
            truth.v2_acknowledged = max(truth.v2_acknowledged, event.index)
        self._end()

    def fail(self, error: BaseException) -> None:
        """It was refused, or nobody knows."""
        if not isinstance(error, KVError | V2Error):
            self._world.violate(Violation(f"a client of the v2 API was told {error!r}"))
        self._end()

    def broken(self) -> None:
        """The process died."""
        self._end()

    def hang_up(self) -> None:
        """The process ends the connection."""
        self._end()

    def _end(self) -> None:
        if not self._done:
            self._done = True
            self._process.calls.pop(self, None)
            if self._patience.active():
                self._patience.cancel()
            self._over()
