"""The KV service: a request in, one question to the member, a response out. No rules in here.

Source: etcd ``server/etcdserver/api/v3rpc/key.go`` and ``quota.go``, for the order of the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from twistedkv.errors import KVError
from twistedkv.pb import rpc_pb2
from twistedkv.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest
from twistedkv.protocols.rpc import Access, Call, Method, service_methods
from twistedkv.protocols.services.answers import answer_when
from twistedkv.storage.mvcc import Loan, Need, NotLoadedError, Store
from twistedkv.txn import (
    Done,
    Executor,
    check_delete,
    check_put,
    check_range,
    check_txn,
    is_read_only,
    is_serializable,
    put_cost,
    txn_cost,
)
from twistedkv.wire import HeaderEncoder, prefixed

# Fields of InternalRaftRequest, as tags of length-delimited fields. The message of a request goes into the log as the
# bytes that it came as.
_PUT, _DELETE, _TXN, _COMPACTION = b"\x22", b"\x2a", b"\x32", b"\x3a"


class KVMember(Protocol):
    """What this service needs of the member; see :class:`twistedkv.server.Member`."""

    header: HeaderEncoder
    store: Store

    @property
    def term(self) -> int: ...

    @property
    def may_read(self) -> bool: ...

    def when_readable(self, ready: Callable[[], None], fail: Callable[[KVError], None]) -> None: ...

    def fetch(self, needs: Sequence[Need]) -> Deferred[Loan]: ...

    def propose(self, body: bytes, waiter: Call) -> None: ...

    def propose_compaction(self, body: bytes, waiter: Call) -> None: ...

    def check_quota(self, cost: int) -> None: ...


class KVService:
    """Range, Put, DeleteRange, Txn and Compact.

    Args:
        member: who answers.
        executor: reads on its state.
        max_txn_ops: see :func:`twistedkv.txn.check_txn`.
    """

    def __init__(self, member: KVMember, executor: Executor, max_txn_ops: int) -> None:
        self._member = member
        self._executor = executor
        self._max_txn_ops = max_txn_ops

    def methods(self) -> list[Method]:
        """The methods of this service, for the method table."""
        return service_methods(
            rpc_pb2.DESCRIPTOR.services_by_name["KV"],
            {
                "Range": (Access.KEYS, self.range),
                "Put": (Access.KEYS, self.put),
                "DeleteRange": (Access.KEYS, self.delete_range),
                "Txn": (Access.KEYS, self.txn),
                "Compact": (Access.ADMIN, self.compact),
            },
        )

    def range(self, call: Call) -> None:
        """KV.Range: from the state as it is, once that is new enough."""
        request = RangeRequest.FromString(call.message)
        check_range(request)
        member = self._member
        if member.may_read or request.serializable:
            self._answer(call, self._executor.range, request)
        else:
            member.when_readable(lambda: self._answer(call, self._executor.range, request), call.fail)

    def put(self, call: Call) -> None:
        """KV.Put."""
        request = PutRequest.FromString(call.message)
        self._member.check_quota(put_cost(request))
        check_put(request)
        self._member.propose(prefixed(_PUT, call.message), call)

    def delete_range(self, call: Call) -> None:
        """KV.DeleteRange."""
        check_delete(DeleteRangeRequest.FromString(call.message))
        self._member.propose(prefixed(_DELETE, call.message), call)

    def txn(self, call: Call) -> None:
        """KV.Txn: one that cannot write is a read."""
        request = TxnRequest.FromString(call.message)
        member = self._member
        if cost := txn_cost(request):
            member.check_quota(cost)
        check_txn(request, self._max_txn_ops)
        if not is_read_only(request):
            member.propose(prefixed(_TXN, call.message), call)
        elif member.may_read or is_serializable(request):
            self._answer(call, self._executor.txn, request)
        else:
            member.when_readable(lambda: self._answer(call, self._executor.txn, request), call.fail)

    def compact(self, call: Call) -> None:
        """KV.Compact."""
        CompactionRequest.FromString(call.message)
        self._member.propose_compaction(prefixed(_COMPACTION, call.message), call)

    def _answer(self, call: Call, execute: Callable[[Any], Done], request: Any) -> None:
        """Answer a read; what the store does not hold is fetched, and the read is tried again with it."""
        if call.done:
            return
        try:
            done = execute(request)
        except NotLoadedError as error:
            self._fetch(call, execute, request, [error.need])
        except KVError as error:
            call.fail(error)
        else:
            call.reply(self._member.header.field(done.revision, self._member.term) + done.body)

    def _fetch(self, call: Call, execute: Callable[[Any], Done], request: Any, needs: list[Need]) -> None:
        def lent(loan: Loan) -> None:
            store = self._member.store
            store.lend(loan)
            try:
                done = execute(request)
            except NotLoadedError as error:
                # A transaction needs several ranges, or a value was evicted since: ask for all of it again.
                if error.need in needs:
                    needs.remove(error.need)
                self._fetch(call, execute, request, [*needs, error.need])
            except KVError as error:
                call.fail(error)
            else:
                call.reply(self._member.header.field(done.revision, self._member.term) + done.body)
            finally:
                store.lend(None)

        answer_when(self._member.fetch(needs), call, lent)
