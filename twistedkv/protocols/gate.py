"""What a member refuses whoever asks it, because of what it is at the moment: a learner, or one without a leader.

A member is rarely either, so the gate is not in the way of calls. It puts itself before the handlers only while this
member is a learner, and callers who want to be refused where no leader is known, which their metadata says, are given
methods of their own. Their streams it ends once there was no leader for long, so that they go and look for a better
member; a stream costs more to open anew than a request does, so they are left alone for a while.

Source: etcd ``server/etcdserver/api/v3rpc/interceptor.go``. It looks for the leader once an election timeout, and so
may end streams up to one such time-out earlier than here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final, Protocol
from weakref import WeakSet

from twistedkv.errors import NoLeaderError, NotForLearnerError
from twistedkv.pb.rpc_pb2 import RangeRequest
from twistedkv.protocols.rpc import Call, Handler, Kind, Method, MethodTable
from twistedkv.protocols.status import LogFailure

LEADERLESS_TIMEOUTS: Final = 3  # election timeouts; etcd api/v3rpc/interceptor.go, maxNoLeaderCnt

_RANGE: Final = "/etcdserverpb.KV/Range"
_FOR_LEARNERS: Final = frozenset({"/etcdserverpb.Maintenance/Status", "/etcdserverpb.Maintenance/Snapshot"})


class GateMember(Protocol):
    """What the gate needs of the member; see :class:`twistedkv.server.Member`."""

    leader_changes: list[Callable[[], None]]  # called after each change of leader or role

    @property
    def leader(self) -> int: ...

    @property
    def is_learner(self) -> bool: ...


class Timer(Protocol):
    """A call to come."""

    def cancel(self) -> None:
        """It does not come."""


class CallLater(Protocol):
    """The reactor's ``callLater``."""

    def __call__(self, delay: float, function: Callable[[], None], /) -> Timer: ...


class Gate:
    """Stands before the methods of a table from :meth:`start` to :meth:`stop`.

    Args:
        table: of all transports.
        member: what it is decides.
        call_later: the reactor's.
        election_timeout_s: of the cluster.
        log_failure: told of what a stream's handler raised when its stream was ended.
    """

    def __init__(
        self,
        table: MethodTable,
        member: GateMember,
        call_later: CallLater,
        election_timeout_s: float,
        log_failure: LogFailure,
    ) -> None:
        self._table = table
        self._member = member
        self._call_later = call_later
        self._patience_s = LEADERLESS_TIMEOUTS * election_timeout_s
        self._log_failure = log_failure
        self._handlers: Mapping[Method, Handler] = {each: each.handler for each in table.by_path.values()}
        self._shut = False  # to a learner's clients
        self._streams: WeakSet[Call] = WeakSet()  # that end without a leader; done ones too, until they are forgotten
        self._leaderless: Timer | None = None  # runs while there is no leader

    def start(self) -> None:
        """Stand there before anybody can call."""
        for path, method in self._table.by_path.items():
            self._table.require_leader[path] = replace(method, handler=partial(self._with_leader, method))
        self._member.leader_changes.append(self.look)
        self.look()

    def stop(self) -> None:
        """Leave nothing to come; the member answers nobody any more."""
        if self.look in self._member.leader_changes:
            self._member.leader_changes.remove(self.look)
        self._wait_for_leader(False)

    def look(self) -> None:
        """See what the member is. To be called when its leader or its role may have changed."""
        learner = self._member.is_learner
        if learner != self._shut:
            self._shut = learner
            for method, handler in self._handlers.items():
                method.handler = partial(self._as_learner, handler) if learner else handler
        self._wait_for_leader(not self._member.leader)

    # --- calls -------------------------------------------------------------------------------------

    def _as_learner(self, handler: Handler, call: Call) -> None:
        if self._member.is_learner:
            _check_for_learner(call)
        else:  # it was promoted
            self.look()
        handler(call)

    def _with_leader(self, method: Method, call: Call) -> None:
        if not self._member.leader:
            if self._member.is_learner:
                _check_for_learner(call)
            raise NoLeaderError
        if method.kind is not Kind.UNARY:
            self._streams.add(call)
        method.handler(call)

    # --- streams without a leader ------------------------------------------------------------------

    def _wait_for_leader(self, waiting: bool) -> None:
        if waiting and self._leaderless is None:
            self._leaderless = self._call_later(self._patience_s, self._end_streams)
        elif not waiting and self._leaderless is not None:
            self._leaderless.cancel()
            self._leaderless = None

    def _end_streams(self) -> None:
        self._leaderless = None  # no stream comes in that asks for a leader until there is one
        streams = list(self._streams)
        self._streams.clear()
        for call in streams:
            try:
                call.interrupt(NoLeaderError())
            except Exception as error:
                self._log_failure(error, call.method.path)


def _check_for_learner(call: Call) -> None:
    """Refuse what a learner does not answer: all but its status, its data as they are, and a copy of them.

    Raises:
        NotForLearnerError: it is something else.
        google.protobuf.message.DecodeError: it is a Range that cannot be read.
    """
    path = call.method.path
    if path in _FOR_LEARNERS or (path == _RANGE and RangeRequest.FromString(call.message).serializable):
        return
    raise NotForLearnerError
