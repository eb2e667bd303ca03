"""Clients of a cluster whose members come and go, each on a thread of its own, which remember what they were told.

Here: a writer with values of its own, and somebody who keeps leases alive; who looks on is in
:mod:`tests.functional.observers`. None of them stops when a member fails: they go on through another one. What must not
be, they raise as :class:`~tests.functional.crash.Violation`, for :meth:`Client.check` to show.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from google.protobuf.message import Message

from tests.functional.clients import KEEP_ALIVE, GrpcClient, Reply
from tests.functional.crash import Auditor, Dice, Violation, request_for
from tests.functional.processes import ServerProcess
from tests.functional.streams import GrpcStream
from twistedkv.pb import rpc_pb2 as pb

ATTEMPT_TIMEOUT_S = 1.5  # less than a member waits itself: another one may answer sooner
_PAUSE_S = 0.05  # after a failure
_JOIN_TIMEOUT_S = 30.0
_KEEPALIVE_INTERVAL_S = 0.5

CANCELLED = 1  # by ourselves
_UNKNOWN, _DEADLINE_EXCEEDED, _UNAVAILABLE = 2, 4, 14
# A member that has just lost its leader, or much to do; which text comes with UNKNOWN depends on the moment. The last
# two are grpcio's own for a connection that broke.
_PASSING = frozenset({_DEADLINE_EXCEEDED, _UNAVAILABLE})
_PASSING_TEXTS = (
    *("context deadline exceeded", "etcdserver: too many requests", "raft proposal dropped", "raft: stopped"),
    *("No status received", "Stream removed"),
)


def is_passing(reply: Reply) -> bool:
    """Whether a failure says that the cluster cannot do it at the moment, and not that it refuses to."""
    return reply.code in _PASSING or (reply.code == _UNKNOWN and reply.text.startswith(_PASSING_TEXTS))


class Gate:
    """Lets writers through, until it is closed; whoever closes it waits for those that are inside."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = True
        self._inside = 0

    def enter(self, timeout_s: float) -> bool:
        """Go through if it opens in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._open, timeout_s):
                return False
            self._inside += 1
            return True

    def leave(self) -> None:
        """Be outside again."""
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    @contextmanager
    def closed(self, timeout_s: float = 3 * ATTEMPT_TIMEOUT_S) -> Iterator[None]:
        """Nobody is inside.

        Raises:
            Violation: somebody does not come out.
        """
        with self._changed:
            self._open = False
            if not self._changed.wait_for(lambda: not self._inside, timeout_s):
                raise Violation("a write does not end by its time-out")
        try:
            yield
        finally:
            with self._changed:
                self._open = True
                self._changed.notify_all()


class Client(threading.Thread):
    """Does one thing again and again through one member, and moves on to the next when that one fails.

    Args:
        members: all there are, whether they run or not.
        first: the index of the one to begin with.
    """

    def __init__(self, name: str, members: Sequence[ServerProcess], first: int = 0) -> None:
        super().__init__(name=name, daemon=True)
        self.over = threading.Event()
        self.member = members[first % len(members)]
        self.moves = 0  # to another member
        self._members = members
        self._turn = first
        self._connections: dict[ServerProcess, GrpcClient] = {}
        self._failure: BaseException | None = None

    @property
    def client(self) -> GrpcClient:
        """The connection to the member that it uses at the moment."""
        found = self._connections.get(self.member)
        if found is None:
            found = self._connections[self.member] = GrpcClient(self.member)
        return found

    def move_on(self) -> None:
        """This member failed: use the next one from now on."""
        self.hang_up()
        self.take_turns()
        self.moves += 1
        self.over.wait(_PAUSE_S)

    def take_turns(self) -> None:
        """Use the next member from now on, and keep the connection to this one."""
        self._turn += 1
        self.member = self._members[self._turn % len(self._members)]

    def hang_up(self) -> None:
        """Close the connection."""
        found = self._connections.pop(self.member, None)
        if found is not None:
            found.close()

    def run(self) -> None:
        """Go on until :meth:`finish`, or until something is wrong."""
        try:
            while not self.over.is_set():
                self.step()
        except BaseException as error:
            self._failure = error
        finally:
            self.hang_up()
            for connection in self._connections.values():
                connection.close()

    def step(self) -> None:
        """The one thing."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise what was wrong, if anything was."""
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """End, and raise what was wrong, if anything was.

        Raises:
            Violation: it hangs.
        """
        self.over.set()
        self.join(_JOIN_TIMEOUT_S)
        if self.is_alive():
            raise Violation(f"{self.name} hangs at {self.member.name}")
        self.check()


class Writer(Client):
    """Writes with values of its own and tells the auditor what came of it.

    Args:
        gate: is gone through for each write.
        pause_s: between two writes.
        timeout_s: for one write.
    """

    def __init__(
        self,
        name: str,
        members: Sequence[ServerProcess],
        first: int,
        auditor: Auditor,
        dice: Dice,
        gate: Gate,
        pause_s: float,
        timeout_s: float = ATTEMPT_TIMEOUT_S,
    ) -> None:
        super().__init__(name, members, first)
        self.acknowledged: deque[tuple[float, float]] = deque(maxlen=256)  # when writes began and were acknowledged
        self._auditor = auditor
        self._dice = dice
        self._gate = gate
        self._pause_s = pause_s
        self._timeout_s = timeout_s

    def step(self) -> None:
        """One write."""
        if not self._gate.enter(0.1):
            return
        try:
            done = self._write()
        finally:
            self._gate.leave()
        if not done:
            self.move_on()
        self.over.wait(self._pause_s)

    def _write(self) -> bool:
        changes = self._dice.changes()
        request = request_for(changes)
        began_s = time.monotonic()
        reply = self.client.call(request, self._timeout_s)
        match reply.message:
            case None if is_passing(reply):
                self._auditor.leave_in_doubt(changes)
                return False
            case None:
                raise Violation(f"{self.member.name} refused a write: {reply.code} {reply.text}: {request}")
            case pb.DeleteRangeResponse(deleted=0):
                pass  # no revision of its own
            case answer:
                self._auditor.acknowledge(answer.header.revision, changes)
        self.acknowledged.append((began_s, time.monotonic()))
        return True

    def first_after(self, began_s: float) -> float | None:
        """When the first write that began later was acknowledged, if one was."""
        return next((acknowledged_s for since_s, acknowledged_s in list(self.acknowledged) if since_s > began_s), None)


class LeaseKeeper(Client):
    """Grants leases and keeps them alive, twice a second, through whichever member answers.

    Args:
        leases: their ids.
        ttl_s: of each.
    """

    def __init__(
        self, name: str, members: Sequence[ServerProcess], first: int, leases: Sequence[int], ttl_s: int
    ) -> None:
        super().__init__(name, members, first)
        self.renewals = 0
        self.longest_gap_s = 0.0  # between two renewals
        self.granted = threading.Event()
        self._leases = leases
        self._ttl_s = ttl_s
        self._stream: GrpcStream | None = None
        self._renewed_s = 0.0

    def step(self) -> None:
        """Renew all."""
        if not self.granted.is_set():
            self._grant()
            return
        stream = self._stream
        if stream is None:
            stream = self._stream = GrpcStream(self.client, KEEP_ALIVE)
        before = len(stream.messages)
        for lease in self._leases:
            stream.send(pb.LeaseKeepAliveRequest(ID=lease))
        wanted = before + len(self._leases)
        if not stream.wait_for(lambda messages: len(messages) >= wanted, ATTEMPT_TIMEOUT_S):
            self.move_on()
            return
        for message in stream.messages[before:]:
            self.take(message)
        self.over.wait(_KEEPALIVE_INTERVAL_S)

    def take(self, response: Message) -> None:
        """One answer.

        Raises:
            Violation: the lease is gone.
        """
        assert isinstance(response, pb.LeaseKeepAliveResponse)
        now_s = time.monotonic()
        gap_s = now_s - self._renewed_s
        if response.TTL <= 0:
            raise Violation(f"{self.member.name}: lease {response.ID:x} has ended {gap_s:.1f} s after a renewal")
        self.longest_gap_s = max(self.longest_gap_s, gap_s)
        self._renewed_s = now_s
        self.renewals += 1

    def hang_up(self) -> None:
        """See :meth:`Client.hang_up`."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        super().hang_up()

    def _grant(self) -> None:
        for lease in self._leases:
            reply = self.client.call(pb.LeaseGrantRequest(ID=lease, TTL=self._ttl_s), ATTEMPT_TIMEOUT_S)
            if reply.code and reply.text != "etcdserver: lease already exists":
                self.move_on()
                return
        self._renewed_s = time.monotonic()
        self.granted.set()
