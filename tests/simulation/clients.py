"""Clients of the keys: each does one thing after the other, through any member, and remembers what it was told.

What is told is compared with the truth as soon as it is: no answer may be older than what somebody was told before the
question. The history of each key is kept, to be judged as a whole at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from tests.calls import RecordedCall
from tests.simulation.history import Attempt, History
from tests.simulation.linearizability import Kind, Value
from tests.simulation.machine import Machine
from tests.simulation.truth import Truth, Violation
from twistedkv.errors import CompactedError, LeaseNotFoundError, NoSpaceError
from twistedkv.pb.kv_pb2 import KeyValue
from twistedkv.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from twistedkv.protocols.rpc import Method

_REFUSALS = (NoSpaceError, LeaseNotFoundError, CompactedError)  # of which it is known that nothing was changed


class Surroundings(Protocol):
    """What clients live in; see :class:`tests.simulation.world.World`."""

    clock: Any
    random: Random
    truth: Truth
    history: History

    @property
    def over(self) -> bool:
        """Whether nothing new is to begin."""

    def note(self, what: str, member_id: int, *facts: Any) -> None:
        """Keep a line of what happened."""

    def pick(self, sticky: Machine | None = None) -> Machine | None:
        """Some machine to talk to, or the same as before."""

    def violate(self, violation: Violation) -> None:
        """A promise was broken."""


class ClientCall(RecordedCall):
    """A call by a simulated client, over a connection that ends with the process."""

    def __init__(
        self,
        machine: Machine,
        method: Method,
        message: bytes,
        told: Callable[[ClientCall], None],
        got: Callable[[bytes], None] | None = None,
    ) -> None:
        super().__init__(method, message)
        assert machine.process is not None
        self.process = machine.process
        self.lost = False  # the connection
        self._told = told
        self._got = got
        self.process.calls[self] = None

    def reply(self, message: bytes) -> None:
        """See :class:`~twistedkv.protocols.rpc.Call`."""
        if not (self.done or self.process.time.dead):
            super().reply(message)
            self._end()

    def fail(self, error: BaseException) -> None:
        """See :class:`~twistedkv.protocols.rpc.Call`."""
        if not (self.done or self.process.time.dead):
            super().fail(error)
            self._end()

    def send(self, message: bytes) -> None:
        """See :class:`~twistedkv.protocols.rpc.Call`."""
        if not (self.done or self.process.time.dead) and self._got is not None:
            self._got(message)

    def broken(self) -> None:
        """The process died."""
        self.done = self.lost = True
        self._told(self)

    def hang_up(self) -> None:
        """The process ends the connection."""
        if not self.done:
            self.process.calls.pop(self, None)
            self.broken()
            if self.on_cancel is not None:
                self.on_cancel()

    def give_up(self) -> None:
        """The client does not wait any more, and the process hears of it."""
        if not self.done:
            self.done = True
            self.process.calls.pop(self, None)
            if self.on_cancel is not None:
                self.on_cancel()

    def _end(self) -> None:
        self.process.calls.pop(self, None)
        self._told(self)


class Client:
    """A client of the keys.

    Args:
        world: around it.
        name: of the client, in its values.
        keys: that it is interested in.
        pause_s: between two operations, on average.
        value_bytes: of its larger values.
    """

    def __init__(self, world: Surroundings, name: str, keys: list[bytes], pause_s: float, value_bytes: int) -> None:
        self.busy = False
        self._world = world
        self._name = name
        self._keys = keys
        self._pause_s = pause_s
        self._value_bytes = value_bytes
        self._number = 0
        self._machine: Machine | None = None
        self._last: dict[bytes, Value] = {}  # what was seen of each key

    def start(self) -> None:
        """Begin, and go on until the world is over."""
        self._rest()

    def _rest(self) -> None:
        self.busy = False
        if not self._world.over:
            self._world.clock.callLater(self._world.random.expovariate(1 / self._pause_s), self._next)

    def _next(self) -> None:
        world, random = self._world, self._world.random
        self._machine = machine = world.pick(self._machine)
        if machine is None or world.over:
            self._rest()
            return
        self.busy = True
        key = random.choice(self._keys)
        make = random.choices([_get, _put, _delete, _swap, _put_two, _look, _look_back], [30, 34, 8, 14, 5, 6, 3])[0]
        make(self, machine, key)

    def value(self) -> bytes:
        """A value that nobody else writes."""
        self._number += 1
        value = b"%b-%d" % (self._name.encode(), self._number)
        return value + bytes(self._value_bytes) if self._world.random.random() < 0.2 else value

    def ask(
        self,
        machine: Machine,
        name: str,
        request: Any,
        answered: Callable[[bytes], None],
        unknown: Callable[[], None],
    ) -> None:
        """Ask a member; what comes of it is told once. A refusal that changed nothing is told nobody."""
        world = self._world
        limit_s = world.random.choice([0.5, 3.0, 9.0])
        asked: list[ClientCall] = []
        given_up = False

        def told(call: ClientCall) -> None:
            if timer.active():
                timer.cancel()
            try:
                if call.sent:
                    answered(call.sent[0])
                elif not isinstance(call.error, _REFUSALS):
                    unknown()
            except Violation as violation:
                world.violate(violation)
            if call.sent and not call.lost:
                self._rest()
            else:
                self._move_on()

        def late() -> None:
            nonlocal given_up
            given_up = True
            for call in asked:
                call.give_up()
            unknown()
            self._move_on()

        def ask() -> None:
            if not given_up:
                call = ClientCall(machine, methods[name], request.SerializeToString(), told)
                asked.append(call)
                call.run()

        timer = world.clock.callLater(limit_s, late)
        process = machine.process
        assert process is not None
        methods = process.methods
        process.time.from_outside(0.0005 * (1 + world.random.random()), ask)

    def _move_on(self) -> None:
        """Try another member."""
        self._machine = None
        self._rest()

    def seen(self, key: bytes, pairs: Any) -> Value:
        """What an answer shows of a key."""
        value = pairs[0].value if pairs else None
        self._last[key] = value
        return value

    def must_be(self, key: bytes, pairs: Any, revision: int) -> None:
        """An answer shows what the key had at a revision.

        Raises:
            Violation: it does not.
        """
        event = self._world.truth.at(key, revision)
        pair = pairs[0] if pairs else None
        shown = None if pair is None else _facts(pair)
        if shown != (None if event is None else (event.revision, event.create_revision, event.version, event.value)):
            raise Violation(f"{self._name} was shown {pair} for {key!r} at revision {revision}, and it was {event}")

    def change_must_be(self, key: bytes, value: Value, revision: int) -> None:
        """A change was acknowledged with this revision.

        Raises:
            Violation: there was none.
        """
        events = self._world.truth.events_of(revision)
        if not any(event.key == key and event.value == value for event in events):
            raise Violation(f"{self._name} was told that {key!r} became {value!r} at {revision}, and there is {events}")

    def begin(self, kind: Kind, key: bytes, value: Value = None, expected: Value = None) -> Attempt:
        """An operation that counts begins."""
        return Attempt(self._world.history, kind, key, value, expected)


# --- what clients do -------------------------------------------------------------------------------------------------


def _get(client: Client, machine: Machine, key: bytes) -> None:
    attempt = client.begin(Kind.GET, key)

    def answered(message: bytes) -> None:
        response = RangeResponse.FromString(message)
        revision = response.header.revision
        attempt.answered(revision, changed=False, seen=client.seen(key, response.kvs))
        client.must_be(key, response.kvs, revision)

    client.ask(machine, "Range", RangeRequest(key=key), answered, attempt.unknown)


def _put(client: Client, machine: Machine, key: bytes) -> None:
    value = client.value()
    attempt = client.begin(Kind.PUT, key, value)

    def answered(message: bytes) -> None:
        response = PutResponse.FromString(message)
        revision = response.header.revision
        shown = [response.prev_kv] if response.HasField("prev_kv") else []
        attempt.answered(revision, changed=True, seen=client.seen(key, shown))
        client.must_be(key, shown, revision - 1)
        client.change_must_be(key, value, revision)

    client.ask(machine, "Put", PutRequest(key=key, value=value, prev_kv=True), answered, attempt.unknown)


def _delete(client: Client, machine: Machine, key: bytes) -> None:
    attempt = client.begin(Kind.DELETE, key)

    def answered(message: bytes) -> None:
        response = DeleteRangeResponse.FromString(message)
        revision = response.header.revision
        deleted = bool(response.deleted)
        attempt.answered(revision, changed=deleted, seen=client.seen(key, response.prev_kvs))
        client.must_be(key, response.prev_kvs, revision - deleted)
        if deleted:
            client.change_must_be(key, None, revision)

    client.ask(machine, "DeleteRange", DeleteRangeRequest(key=key, prev_kv=True), answered, attempt.unknown)


def _swap(client: Client, machine: Machine, key: bytes) -> None:
    expected, value = client._last.get(key), client.value()
    attempt = client.begin(Kind.SWAP, key, value, expected)
    if expected is None:
        compare = Compare(key=key, target=Compare.CREATE, create_revision=0)
    else:
        compare = Compare(key=key, target=Compare.VALUE, value=expected)
    request = TxnRequest(
        compare=[compare],
        success=[RequestOp(request_put=PutRequest(key=key, value=value))],
        failure=[RequestOp(request_range=RangeRequest(key=key))],
    )

    def answered(message: bytes) -> None:
        response = TxnResponse.FromString(message)
        revision = response.header.revision
        if response.succeeded:
            attempt.answered(revision, changed=True, seen=expected, swapped=True)
            client.change_must_be(key, value, revision)
        else:
            pairs = response.responses[0].response_range.kvs
            attempt.answered(revision, changed=False, seen=client.seen(key, pairs), swapped=False)
            client.must_be(key, pairs, revision)

    client.ask(machine, "Txn", request, answered, attempt.unknown)


def _put_two(client: Client, machine: Machine, key: bytes) -> None:
    """Two keys at once, which must be there together; nothing else writes them."""
    value = client.value()
    floor = client._world.history.revision
    pair = (b"%b.one" % key, b"%b.two" % key)
    request = TxnRequest(success=[RequestOp(request_put=PutRequest(key=each, value=value)) for each in pair])

    def answered(message: bytes) -> None:
        revision = TxnResponse.FromString(message).header.revision
        client._world.history.told(revision, floor, changed=True)
        for each in pair:
            client.change_must_be(each, value, revision)

    client.ask(machine, "Txn", request, answered, _nothing)


def _look(client: Client, machine: Machine, key: bytes) -> None:
    """A serializable read shows some moment of the past."""

    def answered(message: bytes) -> None:
        response = RangeResponse.FromString(message)
        client.must_be(key, response.kvs, response.header.revision)

    client.ask(machine, "Range", RangeRequest(key=key, serializable=True), answered, _nothing)


def _look_back(client: Client, machine: Machine, key: bytes) -> None:
    """A read of an old revision, which is compacted, or as it was."""
    revision = client._world.random.randrange(1, client._world.history.revision + 2)

    def answered(message: bytes) -> None:
        client.must_be(key, RangeResponse.FromString(message).kvs, revision)

    client.ask(machine, "Range", RangeRequest(key=key, revision=revision), answered, _nothing)


def _nothing() -> None:
    """Nobody needs to know what came of it."""


def _facts(pair: KeyValue) -> tuple[int, int, int, bytes]:
    return pair.mod_revision, pair.create_revision, pair.version, pair.value
