"""A member that has nothing but a v2 store: what is proposed is carried out at once, unless it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred

from twistedkv.errors import KVError
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.storage.directory import Directory
from twistedkv.v2errors import V2Error
from twistedkv.v2request import carry_out
from twistedkv.v2watch import V2Hub

QUICK = 4  # bcrypt's least cost


class TreeMember:
    """The v2 store of one member, with what was proposed to it."""

    cluster_id = 0xABCDEF

    def __init__(self) -> None:
        self.directory = Directory(V2Hub())
        self.proposed: list[Request] = []
        self.encoded: list[bytes] = []  # the same, as it came
        self.plain: list[tuple[str, str] | None] = []  # what was said of each
        self.held: list[Any] | None = None  # who waits, once it is a list
        self.failing: KVError | None = None

    def propose_v2(self, fields: bytes, waiter: Any, *, plain: tuple[str, str] | None = None) -> None:
        """As :meth:`twistedkv.server.Member.propose_v2`."""
        self.encoded.append(fields)
        self.plain.append(plain)
        self.proposed.append(Request.FromString(fields))
        if self.failing is not None:
            waiter.fail(self.failing)
        elif self.held is not None:
            self.held.append((self.proposed[-1], waiter))
        else:
            self._carry_out(self.proposed[-1], waiter)

    def when_readable(self, ready: Callable[[], None], fail: Callable[[KVError], None]) -> None:
        """As :meth:`twistedkv.server.Member.when_readable`."""
        if self.failing is not None:
            fail(self.failing)
        else:
            ready()

    def release(self) -> None:
        """Carry out what was held."""
        held, self.held = self.held or [], None
        for request, waiter in held:
            self._carry_out(request, waiter)

    def _carry_out(self, request: Request, waiter: Any) -> None:
        try:
            event = carry_out(request, self.directory)
        except V2Error as error:
            waiter.fail(error)
        else:
            waiter.applied(event)


class Threads:
    """Runs what is to be run in a thread: at once, or when the test says so."""

    def __init__(self) -> None:
        self.runs = 0
        self.held: list[tuple[Callable[[], Any], Deferred[Any]]] | None = None

    def __call__(self, function: Callable[[], Any], /) -> Deferred[Any]:
        self.runs += 1
        if self.held is None:
            return maybeDeferred(function)
        done: Deferred[Any] = Deferred()
        self.held.append((function, done))
        return done

    def release(self) -> None:
        """Run what waits, and what waits because of that."""
        while self.held:
            function, done = self.held.pop(0)
            maybeDeferred(function).chainDeferred(done)
