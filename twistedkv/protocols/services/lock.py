"""The Lock service: whose key under ``name/`` is the oldest has the lock.

Source: etcd ``server/etcdserver/api/v3lock/lock.go`` and ``client/v3/concurrency/mutex.go``.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError

from twistedkv.errors import Code, KVError, RPCError
from twistedkv.pb import v3lock_pb2
from twistedkv.pb.rpc_pb2 import PutRequest, RangeRequest, RequestOp, TxnRequest
from twistedkv.pb.v3lock_pb2 import LockRequest, LockResponse, UnlockRequest, UnlockResponse
from twistedkv.protocols.rpc import Access, Call, Method, service_methods
from twistedkv.protocols.services.inside import Inside, Session, created_at, first_created, run


class LockService:
    """Lock and Unlock.

    Args:
        inside: carries the steps out.
    """

    def __init__(self, inside: Inside) -> None:
        self._inside = inside

    def methods(self) -> list[Method]:
        """The methods of this service, for the method table."""
        return service_methods(
            v3lock_pb2.DESCRIPTOR.services_by_name["Lock"],
            {"Lock": (Access.KEYS, self.lock), "Unlock": (Access.KEYS, self.unlock)},
        )

    def lock(self, call: Call) -> None:
        """Lock.Lock: answered when the lock is held, until the key is deleted or its lease ends.

        The header's revision is one at which the lock was held: larger for every later holder, it can be used to fence
        off an earlier one.
        """
        run(call, _lock(Session(self._inside, call), LockRequest.FromString(call.message)))

    def unlock(self, call: Call) -> None:
        """Lock.Unlock: deletes a key; one that does not exist is unlocked already."""
        run(call, _unlock(Session(self._inside, call), UnlockRequest.FromString(call.message)))


async def _lock(session: Session, request: LockRequest) -> bytes:
    lease = await session.lease(request.lease)
    prefix = request.name + b"/"
    key = prefix + b"%x" % lease
    mine = RequestOp(request_range=RangeRequest(key=key))
    owner = RequestOp(request_range=first_created(prefix))
    entered = await session.txn(
        TxnRequest(
            compare=[created_at(key, 0)],
            success=[RequestOp(request_put=PutRequest(key=key, lease=lease)), owner],
            failure=[mine, owner],  # this session waits for it or has it already
        )
    )
    header, revision = entered.header, entered.header.revision
    if not entered.succeeded:
        revision = entered.responses[0].response_range.kvs[0].create_revision
    if entered.responses[1].response_range.kvs[0].create_revision != revision:
        try:
            await session.until_first(prefix, revision)
            left = await session.range(mine.request_range)
        except (KVError, CancelledError):
            session.abandon(session.delete(key))
            raise
        if not left.kvs:
            raise RPCError(Code.UNKNOWN, "mutex: session is expired")
        header = left.header
    return LockResponse(header=header, key=key).SerializeToString()


async def _unlock(session: Session, request: UnlockRequest) -> bytes:
    deleted = await session.delete(request.key)
    return UnlockResponse(header=deleted.header).SerializeToString()
