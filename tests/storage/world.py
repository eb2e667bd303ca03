"""A store with its database, driven as the server drives it, and the model's answers to the same requests."""

from __future__ import annotations

from collections.abc import Callable

from tests.kvmodel import Model
from tests.requests import Request
from twistedkv.errors import DuplicateKeyError, KVError
from twistedkv.lease import Lease, Lessor
from twistedkv.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest
from twistedkv.storage.keyindex import KeyIndex
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.mvcc import NotLoadedError, Store, fetch, load
from twistedkv.txn import Done, Executor, check_txn

LEASES = (7, 8)


class World:
    """A store with its database, driven as the server drives it; the cache holds next to nothing."""

    def __init__(self) -> None:
        self.backend = MemoryBackend()
        self.store = Store(KeyIndex(0))
        self.lessor = Lessor(1, [Lease(each, 60) for each in LEASES])
        self.executor = Executor(self.store, self.lessor)

    def flush(self) -> None:
        """What the write-behind does."""
        self.backend.write(self.store.take_batch())

    def compact_rows(self) -> None:
        """What the background does after a compaction."""
        self.flush()
        after, step = 0, 3
        while True:
            _, after = self.backend.compact(self.store.compacted, after, step)
            if not after:
                return

    def restart(self, limit_bytes: int = 0) -> None:
        """A new store from the database alone; the attachments of leases are kept."""
        self.flush()
        self.store = load(self.backend, limit_bytes, chunk=3)
        self.store.index.limit_bytes = 0
        self.executor = Executor(self.store, self.lessor)

    def send(self, request: Request) -> Done:
        """Carry out one request with everything that it needs."""
        executor, store = self.executor, self.store
        match request:
            case RangeRequest():
                return self._read(executor.range, request)
            case PutRequest():
                done = self._write(executor.needs_put, executor.put, request)
            case DeleteRangeRequest():
                done = self._write(executor.needs_delete, executor.delete, request)
            case TxnRequest():
                done = self._write(executor.needs_txn, executor.txn, request)
            case CompactionRequest():
                store.compact(request.revision)
                done = Done(store.revision, b"")
        store.index.evict()
        return done

    def _write(self, needs: Callable, execute: Callable, request: Request) -> Done:  # type: ignore[type-arg]
        wanted = tuple(needs(request))
        if wanted:
            self.flush()
            self.store.lend(fetch(self.backend, wanted))
        try:
            return execute(request)  # type: ignore[no-any-return]
        finally:
            self.store.lend(None)

    def _read(self, execute: Callable, request: RangeRequest) -> Done:  # type: ignore[type-arg]
        try:
            return execute(request)  # type: ignore[no-any-return]
        except NotLoadedError as error:
            self.flush()
            self.store.lend(fetch(self.backend, [error.need]))
            return execute(request)  # type: ignore[no-any-return]
        finally:
            self.store.lend(None)


def answer_of(model: Model, request: Request) -> Done:
    """What the model says to a request."""
    match request:
        case RangeRequest():
            body = model.range(request).SerializeToString()
        case PutRequest():
            body = model.put(request).SerializeToString()
        case DeleteRangeRequest():
            body = model.delete(request).SerializeToString()
        case TxnRequest():
            body = model.txn(request).SerializeToString()
        case CompactionRequest():
            model.compact(request.revision)
            body = b""
    return Done(model.revision, body)


def outcome(ask: Callable[[Request], Done], request: Request) -> Done | type[KVError]:
    """The answer, or the class of the refusal."""
    try:
        return ask(request)
    except KVError as error:
        return type(error)


def passes_check(request: TxnRequest) -> bool:
    """Whether the transaction gets as far as the store."""
    try:
        check_txn(request, 128)
    except DuplicateKeyError:
        return False
    return True
