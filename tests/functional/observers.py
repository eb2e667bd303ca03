"""Clients of a cluster in trouble that know what its history must look like: a watcher of all of it, and a reader.

Both go on through another member when one fails; see :mod:`tests.functional.witnesses`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from google.protobuf.message import Message

from tests.functional.clients import WATCH, GrpcClient
from tests.functional.crash import Auditor, ServerHistory, Violation
from tests.functional.model import StoreModel
from tests.functional.processes import ServerProcess
from tests.functional.streams import GrpcStream
from tests.functional.witnesses import ATTEMPT_TIMEOUT_S, CANCELLED, Client, is_passing
from twistedkv.pb import rpc_pb2 as pb
from twistedkv.pb.kv_pb2 import Event, KeyValue

_SILENCE_S = 1.0  # of a watch, after which another member is asked
_ALL = {"key": b"\x00", "range_end": b"\x00"}


class Watcher(Client):
    """Follows every revision from the first, over however many watches that takes.

    It checks that each revision comes once, whole, in order and without a gap, and that it says of its keys what a
    store says that has seen the same.
    """

    def __init__(self, name: str, members: Sequence[ServerProcess], first: int = 0) -> None:
        super().__init__(name, members, first)
        self.model = StoreModel()
        self.revision = self.model.revision  # the last that it has seen
        self.puts: dict[int, list[KeyValue]] = {}  # of each revision
        self.counts: dict[int, int] = {}  # of live keys, at each revision
        self.prints = {self.revision: 0}  # of the whole state, at each revision
        self._changed = threading.Condition()

    def step(self) -> None:
        """One watch, from its beginning to its end or until it is silent."""
        create = pb.WatchCreateRequest(**_ALL, start_revision=self.revision + 1)
        stream = GrpcStream(self.client, WATCH, [pb.WatchRequest(create_request=create)])
        try:
            taken = 0
            while not self.over.is_set():
                if not stream.wait_for(lambda messages, taken=taken: len(messages) > taken, _SILENCE_S):
                    break
                for message in stream.messages[taken:]:
                    self.take(message)
                    taken += 1
        finally:
            stream.close()
        if stream.end is not None and stream.end.code != CANCELLED and not is_passing(stream.end):
            raise Violation(f"{self.member.name} ended a watch by {stream.end.code} {stream.end.text}")
        self.move_on()

    def take(self, response: Message) -> None:
        """One response.

        Raises:
            Violation: it does not follow from what came before.
        """
        assert isinstance(response, pb.WatchResponse)
        if response.canceled:
            raise Violation(f"{self.member.name} cancelled the watch from {self.revision + 1}: {response}")
        events: dict[int, list[Event]] = {}
        for event in response.events:
            events.setdefault(event.kv.mod_revision, []).append(event)
        for revision, together in events.items():
            self._take_revision(revision, together)

    def wait_for(self, revision: int, timeout_s: float) -> None:
        """Wait until it has seen ``revision``.

        Raises:
            Violation: it has not in time.
        """
        with self._changed:
            seen = self._changed.wait_for(lambda: self.revision >= revision or self._failure is not None, timeout_s)
        self.check()
        if not seen:
            raise Violation(f"the watch is at {self.revision} and not at {revision} after {timeout_s} s")

    def forget(self) -> None:
        """What was seen so far, but for the last revision, is needed no more."""
        self.puts.clear()
        self.counts.clear()
        self.prints = {self.revision: self.prints[self.revision]}

    def run(self) -> None:
        """See :meth:`Client.run`."""
        super().run()
        with self._changed:
            self._changed.notify_all()

    def _take_revision(self, revision: int, events: Sequence[Event]) -> None:
        model = self.model
        if revision != model.revision + 1:
            raise Violation(f"{self.member.name} sent revision {revision} after {model.revision}")
        changes = {event.kv.key: None if event.type == Event.DELETE else event.kv.value for event in events}
        if len(changes) != len(events):
            raise Violation(f"{self.member.name} sent a key twice in revision {revision}")
        state = self.prints[model.revision]
        for key in changes:
            state ^= _print_of(model.live.get(key))
        try:
            model.apply(changes)
        except ValueError as error:
            raise Violation(f"{self.member.name} sent at revision {revision} what cannot be: {error}") from error
        for event in events:
            expected = model.live.get(event.kv.key) or KeyValue(key=event.kv.key, mod_revision=revision)
            if event.kv != expected:
                raise Violation(f"{self.member.name} sent {event.kv} where the history makes {expected}")
            state ^= _print_of(model.live.get(event.kv.key))
        self.puts[revision] = [event.kv for event in events if event.type != Event.DELETE]
        self.counts[revision] = len(model.live)
        self.prints[revision] = state
        with self._changed:
            self.revision = revision
            self._changed.notify_all()


class WatchedHistory(ServerHistory):
    """A server's past as a watcher saw it; the present, and who was alive when, as the server itself says.

    Args:
        client: a connection to any member.
        watcher: has followed everything.
        patience_s: how long it may be behind.
    """

    def __init__(self, client: GrpcClient, watcher: Watcher, patience_s: float) -> None:
        super().__init__(client)
        self._connection = client
        self._watcher = watcher
        self._patience_s = patience_s
        self._current = 0

    def revision(self) -> int:
        """The current revision, by a linearizable read, once the watcher has it as well."""
        self._current = super().revision()
        self._watcher.wait_for(self._current, self._patience_s)
        return self._current

    def puts_at(self, revision: int) -> tuple[Sequence[KeyValue], int]:
        """As it was watched."""
        return self._watcher.puts[revision], self._watcher.counts[revision]

    def hash_kv(self) -> int:
        """As of the revision that was current, whatever came since."""
        reply = self._connection.call(pb.HashKVRequest(revision=self._current))
        if not isinstance(reply.message, pb.HashKVResponse):
            raise Violation(f"HashKV failed: {reply.code} {reply.text}")
        return reply.message.hash


class Reader(Client):
    """Reads everything, linearizably, through one member after the other.

    What it reads must be as new as what was acknowledged before it asked, and exactly the state of one revision.
    """

    def __init__(
        self, name: str, members: Sequence[ServerProcess], first: int, auditor: Auditor, pause_s: float
    ) -> None:
        super().__init__(name, members, first)
        self.reads = 0
        self._auditor = auditor
        self._pause_s = pause_s
        self._seen: list[tuple[int, int, str]] = []  # revision, print of the state, who said so
        self._lock = threading.Lock()

    def step(self) -> None:
        """One read, and one member further."""
        floor = self._auditor.newest
        reply = self.client.call(pb.RangeRequest(**_ALL), ATTEMPT_TIMEOUT_S)
        if isinstance(reply.message, pb.RangeResponse):
            self.take(floor, reply.message)
            self.take_turns()
        elif is_passing(reply):
            self.move_on()
        else:
            raise Violation(f"{self.member.name} refused a read: {reply.code} {reply.text}")
        self.over.wait(self._pause_s)

    def take(self, floor: int, response: pb.RangeResponse) -> None:
        """One answer to a question that was asked when ``floor`` was the newest revision acknowledged.

        Raises:
            Violation: it is older.
        """
        revision = response.header.revision
        if revision < floor:
            raise Violation(f"{self.member.name} read at revision {revision} after {floor} was acknowledged")
        state = 0
        for kv in response.kvs:
            state ^= _print_of(kv)
        self.reads += 1
        with self._lock:
            self._seen.append((revision, state, self.member.name))

    def compare(self, watcher: Watcher) -> None:
        """Hold what was read against what was watched up to now.

        Raises:
            Violation: some read was of a state that never was.
        """
        with self._lock:
            seen, self._seen = self._seen, []
        for revision, state, name in seen:
            if revision > watcher.revision:
                with self._lock:
                    self._seen.append((revision, state, name))
            elif revision in watcher.prints and watcher.prints[revision] != state:
                raise Violation(f"{name} read at revision {revision} what was not there then")


def _print_of(kv: KeyValue | None) -> int:
    """Stands for one key with all that is known of it; of a state, all of these by exclusive or."""
    return 0 if kv is None else hash(kv.SerializeToString(deterministic=True))
