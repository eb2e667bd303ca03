"""Services that use other services: calls from inside the member, on behalf of a client's call.

Locks and elections are recipes over keys and leases. In etcd their services are clients of the server that they run in,
and so they are here: each step goes through the method that a client would call, as that client, so that it meets the
same checks. Source: etcd ``server/proxy/grpcproxy/adapter``, ``client/v3/concurrency/{session,key}.go``.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.errors import Code, CompactedError, InvariantError, KVError, RPCError
from twistedkv.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    LeaseGrantRequest,
    LeaseGrantResponse,
    RangeRequest,
    RangeResponse,
    TxnRequest,
    TxnResponse,
)
from twistedkv.protocols.rpc import Call, Method
from twistedkv.storage.mvcc import Change
from twistedkv.watchers import prefix_end

SESSION_TTL_S = 60  # etcd concurrency/session.go, defaultSessionTTL

_RANGE, _TXN, _DELETE = (f"/etcdserverpb.KV/{name}" for name in ("Range", "Txn", "DeleteRange"))
_GRANT = "/etcdserverpb.Lease/LeaseGrant"

M = TypeVar("M", bound=Message)

_log = Logger()


class Observing(Protocol):
    """What :meth:`WatchHub.observe` gives; see :class:`twistedkv.watch.Observation`."""

    def cancel(self) -> None: ...


class Observes(Protocol):
    """What is needed of :class:`twistedkv.watch.WatchHub`."""

    def observe(
        self, key: bytes, range_end: bytes, start_revision: int, tell: Callable[[int, list[Change]], None], /
    ) -> Observing: ...


class _InnerCall(Call):
    """A unary call from inside, with the head and the peer of the call that it is made for."""

    __slots__ = ("answer",)

    def __init__(self, method: Method, outer: Call, message: bytes) -> None:
        super().__init__(method, outer.head, outer.peer, message)
        self.answer: Deferred[bytes] = Deferred()

    def reply(self, message: bytes) -> None:
        if not self.done:
            self.done = True
            self.answer.callback(message)

    def fail(self, error: BaseException) -> None:
        if not self.done:
            self.done = True
            self.answer.errback(error)


class Inside:
    """The methods that can be called from inside.

    Args:
        methods: with those of KV and Lease among them.
        hub: tells of changes.
    """

    def __init__(self, methods: Iterable[Method], hub: Observes) -> None:
        self.hub = hub
        self._methods = {method.path: method for method in methods}

    def call(self, outer: Call, path: str, request: Message) -> Deferred[bytes]:
        """The encoded answer of one method. Cancelling stops the waiting only."""
        method = self._methods[path]
        inner = _InnerCall(method, outer, request.SerializeToString())
        try:
            method.handler(inner)
        except KVError as error:
            inner.fail(error)
        return inner.answer


class Session:
    """The steps of one call.

    Args:
        inside: does them.
        call: for whom.
    """

    def __init__(self, inside: Inside, call: Call) -> None:
        self._inside = inside
        self._call = call

    async def lease(self, lease_id: int) -> int:
        """A lease to put keys on: the given one, whether it exists or not, or for 0 a new one."""
        if lease_id:
            return lease_id
        return (await self._ask(_GRANT, LeaseGrantRequest(TTL=SESSION_TTL_S), LeaseGrantResponse)).ID

    async def txn(self, request: TxnRequest) -> TxnResponse:
        """KV.Txn."""
        return await self._ask(_TXN, request, TxnResponse)

    async def range(self, request: RangeRequest) -> RangeResponse:
        """KV.Range."""
        return await self._ask(_RANGE, request, RangeResponse)

    async def delete(self, key: bytes) -> DeleteRangeResponse:
        """KV.DeleteRange of one key."""
        return await self._ask(_DELETE, DeleteRangeRequest(key=key), DeleteRangeResponse)

    def abandon(self, step: Coroutine[Any, Any, Any]) -> None:
        """Take a last step for a call that nobody waits for any more."""
        Deferred.fromCoroutine(step).addErrback(self._not_abandoned)

    def _not_abandoned(self, failure: Failure) -> None:
        _log.warn(
            "{path} was given up, its key stays until its lease ends: {error}",
            path=self._call.method.path,
            error=failure.value,
        )

    async def until_first(self, prefix: bytes, create_revision: int) -> None:
        """Wait until no key with ``prefix`` is left that was created before ``create_revision``.

        Each waits for the key before it alone, so that one deletion wakes one waiter.
        """
        before = RangeRequest(
            key=prefix,
            range_end=prefix_end(prefix),
            max_create_revision=create_revision - 1,
            sort_target=RangeRequest.CREATE,
            sort_order=RangeRequest.DESCEND,
            limit=1,
        )
        while (found := await self.range(before)).kvs:
            key, revision = found.kvs[0].key, found.header.revision
            while True:
                revision, changes = await self.next_changes(key, b"", revision + 1)
                if not changes or any(change.deleted for change in changes):
                    break

    def next_changes(self, key: bytes, range_end: bytes, start_revision: int) -> Deferred[tuple[int, list[Change]]]:
        """The first revision from ``start_revision`` on that changes the range, and its changes.

        None at all: that revision is compacted, so look at the state again.
        """
        observing: Observing | None = None

        def stop(_: object) -> None:
            if observing is not None:
                observing.cancel()

        def tell(revision: int, changes: list[Change]) -> None:
            stop(None)
            told.callback((revision, changes))

        told: Deferred[tuple[int, list[Change]]] = Deferred(stop)
        try:
            observing = self._inside.hub.observe(key, range_end, start_revision, tell)
        except CompactedError:
            told.callback((start_revision, []))
        return told

    async def until_writable(self) -> None:
        """Wait until the client has taken what it was sent."""
        while not self._call.writable:
            room: Deferred[None] = Deferred()
            self._call.on_writable = partial(room.callback, None)
            try:
                await room
            finally:
                self._call.on_writable = None

    async def _ask(self, path: str, request: Message, response: type[M]) -> M:
        return response.FromString(await self._inside.call(self._call, path, request))


def run(call: Call, steps: Coroutine[Any, Any, bytes]) -> None:
    """Answer ``call`` with what ``steps`` come to; a client that goes away cancels what they wait for.

    etcd's own errors come out of its inner client without their code: they are UNKNOWN here, with the same text.
    """

    def failed(failure: Failure) -> None:
        error = failure.value
        if isinstance(error, KVError):
            error = RPCError(Code.UNKNOWN, str(error))
        elif call.done and isinstance(error, CancelledError):
            return
        call.fail(error or InvariantError("a failure without an exception"))

    outcome = Deferred.fromCoroutine(steps)
    call.on_cancel = outcome.cancel
    outcome.addCallback(call.reply).addErrback(failed)


def first_created(prefix: bytes) -> RangeRequest:
    """Asks for the key with ``prefix`` that was created before all others: whose turn it is."""
    return RangeRequest(
        key=prefix,
        range_end=prefix_end(prefix),
        sort_target=RangeRequest.CREATE,
        sort_order=RangeRequest.ASCEND,
        limit=1,
    )


def created_at(key: bytes, revision: int) -> Compare:
    """Whether ``key`` is the one created at ``revision``; 0: whether it does not exist."""
    return Compare(key=key, target=Compare.CREATE, result=Compare.EQUAL, create_revision=revision)
