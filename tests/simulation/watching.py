"""Clients that watch: each must be shown every event of its range once, in order, whatever happens to the members.

A watch that loses its member goes on at another one, from the revision behind the last one that it saw all of. Where a
compaction overtakes it, it is told so and goes on from there.
"""

from __future__ import annotations

from functools import partial

from tests.simulation.clients import ClientCall, Surroundings
from tests.simulation.machine import Machine
from tests.simulation.truth import Event, Violation
from twistedkv.pb.kv_pb2 import Event as WatchEvent
from twistedkv.pb.rpc_pb2 import WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse

IDLE_S = 3.0  # after which a client asks how far its watch is, or tries another member
UNREAD = 3  # messages that a client which does not read leaves room for


class Watcher:
    """One client with one watch.

    Args:
        world: around it.
        key, range_end: what it watches.
        start_revision: from where on.
        lazy: whether it stops reading now and then.
    """

    def __init__(
        self, world: Surroundings, name: str, key: bytes, range_end: bytes, start_revision: int, lazy: bool
    ) -> None:
        self.seen = 0  # events
        self._world = world
        self._name = name
        self._key = key
        self._range_end = range_end
        self._lazy = lazy
        self._next = start_revision  # from which on it has not seen all
        self._position = 0  # in the truth's events, of the next one that it must see
        self._unread: list[bytes] = []
        self._reading = True
        self._call: ClientCall | None = None
        self._machine: Machine | None = None
        self._heard_s = 0.0
        self._watch_id: int | None = None
        self._connections = 0  # that it has made

    def start(self) -> None:
        """Begin, and go on for ever."""
        self._connect()

    @property
    def complete(self) -> bool:
        """Whether it has seen all that there is."""
        return self._expected() is None

    def _connect(self) -> None:
        world = self._world
        self._connections += 1
        self._call = self._watch_id = None
        self._unread.clear()
        self._reading = True
        self._position = world.truth.position_after(self._next - 1)
        machine = self._machine = world.pick()
        process = None if machine is None else machine.process
        if machine is None or process is None:
            world.clock.callLater(0.5, self._reconnect, self._connections)
            return
        self._heard_s = world.clock.seconds()
        process.time.from_outside(0.001, self._create, machine, self._connections)
        world.clock.callLater(IDLE_S, self._look, self._connections)

    def _create(self, machine: Machine, connection: int) -> None:
        if connection != self._connections:
            return
        assert machine.process is not None
        methods = machine.process.methods
        call = self._call = ClientCall(machine, methods["Watch"], b"", self._ended, partial(self._got, connection))
        call.run()
        request = WatchCreateRequest(key=self._key, range_end=self._range_end, start_revision=self._next)
        self._say(call, WatchRequest(create_request=request))

    def _say(self, call: ClientCall, request: WatchRequest) -> None:
        if not call.done and call.on_message is not None:
            call.on_message(request.SerializeToString())

    def _ended(self, call: ClientCall) -> None:
        """The connection is lost."""
        if call is self._call:
            self._world.clock.callLater(self._world.random.random(), self._reconnect, self._connections)
            self._call = None

    def _reconnect(self, connection: int) -> None:
        if connection == self._connections:
            self._connect()

    def _look(self, connection: int) -> None:
        """Ask how far it is; go elsewhere if nothing is heard for long, as after a pause or a death."""
        world, machine, call = self._world, self._machine, self._call
        if connection != self._connections or machine is None:
            return  # it has another one by now
        process = machine.process
        silent_s = world.clock.seconds() - self._heard_s
        if call is None or process is not call.process or silent_s > 3 * IDLE_S or world.random.random() < 0.1:
            self._call = None
            if call is not None:
                call.process.time.from_outside(0.001, call.give_up)
            self._connect()
        else:
            world.clock.callLater(IDLE_S, self._look, connection)
            request = WatchRequest(progress_request=WatchProgressRequest())
            process.time.from_outside(0.001, self._say, call, request)

    # --- what comes ----------------------------------------------------------------------------------

    def _got(self, connection: int, message: bytes) -> None:
        call = self._call
        if call is None or connection != self._connections:
            return
        self._unread.append(message)
        if self._reading and self._lazy and self._world.random.random() < 0.05:
            self._reading = False
            self._world.clock.callLater(self._world.random.random() * 2, self._read_on, call)
        if self._reading:
            self._read()
        else:
            call.room = len(self._unread) < UNREAD

    def _read_on(self, call: ClientCall) -> None:
        if call is not self._call:
            return
        call.process.time.from_outside(0, self._make_room, call)

    def _make_room(self, call: ClientCall) -> None:
        if call is not self._call or call.done:
            return
        self._reading = True
        self._read()
        call.room = True
        if call.on_writable is not None:
            call.on_writable()

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        try:
            for message in unread:
                if self._call is not None:  # else it was cut off
                    self._take(WatchResponse.FromString(message))
        except Violation as violation:
            self._world.violate(violation)

    def _take(self, response: WatchResponse) -> None:
        self._heard_s = self._world.clock.seconds()
        if response.created:
            self._watch_id = response.watch_id
        elif response.canceled:
            self._cut_off(response.compact_revision)
        elif response.events:
            if response.watch_id != self._watch_id:
                raise Violation(f"{self._name} gets events of watch {response.watch_id}, and has {self._watch_id}")
            for event in response.events:
                self._see(event)
        else:
            self._has_all_up_to(response.header.revision)

    def _see(self, event: WatchEvent) -> None:
        pair = event.kv
        shown = Event(
            pair.mod_revision,
            pair.key,
            None if event.type == WatchEvent.DELETE else pair.value,
            pair.version,
            pair.create_revision,
            pair.lease,
        )
        expected = self._expected()
        if shown != expected:
            raise Violation(f"{self._name} is shown {shown}, and next comes {expected}")
        self.seen += 1
        self._position += 1
        # All of a revision comes in one message; the next one may bring more of it only if this is cut off.
        following = self._expected()
        self._next = shown.revision if following and following.revision == shown.revision else shown.revision + 1

    def _expected(self) -> Event | None:
        """The next event that it must see."""
        events = self._world.truth.events
        while self._position < len(events):
            event = events[self._position]
            inside = event.key == self._key or (self._range_end and self._key <= event.key < self._range_end)
            if inside and event.revision >= self._next:
                return event
            self._position += 1
        return None

    def _cut_off(self, compacted: int) -> None:
        """A compaction up to this revision has overtaken it."""
        truth = self._world.truth
        if not self._next <= compacted <= truth.revision:
            raise Violation(f"{self._name} is cut off by a compaction at {compacted}, and needs {self._next}")
        if not any(entry.compacted == compacted for entry in truth.entries.values()):
            raise Violation(f"{self._name} is cut off at {compacted}, and there was no such compaction")
        self._world.note("cut off", 0, self._name, compacted)
        self._next = compacted
        self._position = truth.position_after(compacted - 1)
        if self._call is not None:
            self._call.give_up()
            self._call = None
        self._world.clock.callLater(0.01, self._reconnect, self._connections)

    def _has_all_up_to(self, revision: int) -> None:
        expected = self._expected()
        if expected is not None and expected.revision <= revision:
            raise Violation(f"{self._name} is told that it has all up to {revision}, and {expected} is missing")
        self._next = max(self._next, revision + 1)
