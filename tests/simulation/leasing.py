"""Clients with leases: none may end before its TTL has passed since its owner last asked for it and was told yes.

An owner grants itself a lease, hangs a key on it, renews it at any member for a while, and then revokes it or forgets
it. What the leases of all owners come to is compared with the truth, in which a lease's end is a revocation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation.clients import ClientCall, Surroundings
from tests.simulation.machine import Machine
from tests.simulation.truth import Violation
from twistedkv.pb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseRevokeRequest,
    PutRequest,
)


class Promises:
    """Until when each lease has been promised to last."""

    def __init__(self) -> None:
        self.expired = 0  # leases that nobody asked to end
        self._until_s: dict[int, float] = {}
        self._given_up: set[int] = set()  # their owners asked for their end

    def promise(self, lease_id: int, until_s: float) -> None:
        """The owner was told that it lasts until then at least."""
        self._until_s[lease_id] = max(until_s, self._until_s.get(lease_id, 0.0))

    def give_up(self, lease_id: int) -> None:
        """The owner asks for its end."""
        self._given_up.add(lease_id)

    def ended(self, lease_id: int, now_s: float) -> None:
        """It was revoked.

        Raises:
            Violation: too early.
        """
        if lease_id in self._given_up:
            return
        self.expired += 1
        until_s = self._until_s.get(lease_id, 0.0)
        if now_s < until_s:
            raise Violation(f"lease {lease_id:x} has ended {until_s - now_s:.3f} s before its time")


class Owner:
    """One client with one lease at a time.

    Args:
        world: around it.
        promises: what owners were told.
        key: hangs on its leases.
    """

    def __init__(self, world: Surroundings, promises: Promises, key: bytes) -> None:
        self._world = world
        self._promises = promises
        self._key = key
        self._lease = 0
        self._ttl_s = 0
        self._renewals = 0  # that are still to come
        self._machine: Machine | None = None  # that it asks, as long as it gets answers

    def start(self) -> None:
        """Begin, and go on until the world is over."""
        self._later(2.0, self._grant)

    def _later(self, mean_s: float, what: Callable[[], None]) -> None:
        if not self._world.over:
            self._world.clock.callLater(self._world.random.expovariate(1 / mean_s), what)

    def _grant(self) -> None:
        random = self._world.random
        ttl_s = random.choice([2, 3, 5])
        asked_s = self._world.clock.seconds()

        def granted(message: bytes) -> None:
            response = LeaseGrantResponse.FromString(message)
            self._lease, self._ttl_s = response.ID, response.TTL
            self._promises.promise(response.ID, asked_s + response.TTL)
            self._renewals = random.randrange(6)
            self._ask("Put", PutRequest(key=self._key, value=b"%x" % response.ID, lease=response.ID), self._renew_soon)

        self._ask("LeaseGrant", LeaseGrantRequest(TTL=ttl_s), granted)

    def _renew_soon(self, _: bytes) -> None:
        self._later(self._ttl_s / 3, self._renew)

    def _renew(self) -> None:
        random = self._world.random
        self._renewals -= 1
        if self._renewals <= 0:
            if random.random() < 0.5:
                self._promises.give_up(self._lease)
                self._ask("LeaseRevoke", LeaseRevokeRequest(ID=self._lease), lambda _: self._later(2.0, self._grant))
            else:
                self._later(2.0, self._grant)
            return
        lease_id, asked_s = self._lease, self._world.clock.seconds()

        def renewed(message: bytes) -> None:
            response = LeaseKeepAliveResponse.FromString(message)
            if response.TTL > 0:
                self._promises.promise(lease_id, asked_s + response.TTL)
                self._renew_soon(b"")
            else:  # it is over
                self._later(2.0, self._grant)

        self._ask("LeaseKeepAlive", LeaseKeepAliveRequest(ID=lease_id), renewed)

    def _ask(self, name: str, request: Any, answered: Callable[[bytes], None]) -> None:
        """Ask some member; without an answer a new lease is begun some time."""
        world = self._world
        machine = self._machine = world.pick(self._machine)
        process = None if machine is None else machine.process
        if machine is None or process is None:
            self._later(1.0, self._grant)
            return
        over = False

        def end() -> bool:
            nonlocal over
            was, over = over, True
            if timer.active():
                timer.cancel()
            return not was

        def told(call: ClientCall) -> None:
            if end():
                self._answer(answered, call.sent[0] if call.sent else None)

        def got(message: bytes) -> None:
            if end():
                call = calls[0]
                self._answer(answered, message)
                world.clock.callLater(0, call.give_up)

        def late() -> None:
            if end():
                for call in calls:
                    process.time.from_outside(0, call.give_up)
                self._answer(answered, None)

        def ask() -> None:
            if not over:
                body = request.SerializeToString()
                call = ClientCall(machine, process.methods[name], body, told, got)
                calls.append(call)
                call.run()
                if call.on_message is not None:
                    call.on_message(body)

        calls: list[ClientCall] = []
        timer = world.clock.callLater(world.random.choice([1.0, 4.0]), late)
        process.time.from_outside(0.001, ask)

    def _answer(self, answered: Callable[[bytes], None], message: bytes | None) -> None:
        if message is None:
            self._machine = None
            self._later(1.0, self._grant)
            return
        try:
            answered(message)
        except Violation as violation:
            self._world.violate(violation)
