"""A hub on a store with a database, a clock and clients, and a memory of everything that happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any, NamedTuple

from twisted.internet.task import Clock

from twistedkv.history import History, Replay, Replayed
from twistedkv.pb.kv_pb2 import Event, KeyValue
from twistedkv.pb.rpc_pb2 import WatchCreateRequest, WatchResponse
from twistedkv.storage.backend import MAX_MAIN, Batch, Bucket, pack
from twistedkv.storage.keyindex import KeyIndex
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.mvcc import Store, load
from twistedkv.watch import WatchHub
from twistedkv.watchevents import ResponseEncoder
from twistedkv.watchstream import WatchStream, open_stream
from twistedkv.wire import HeaderEncoder

NOPUT, NODELETE = WatchCreateRequest.NOPUT, WatchCreateRequest.NODELETE


class Client:
    """The far end of a stream."""

    def __init__(self) -> None:
        self.room = True
        self.most_unread = 1 << 30  # more do not fit
        self.unread: list[bytes] = []

    @property
    def writable(self) -> bool:
        return self.room and len(self.unread) < self.most_unread

    def send(self, message: bytes) -> None:
        self.unread.append(message)

    def read(self) -> list[WatchResponse]:
        unread, self.unread = self.unread, []
        return [WatchResponse.FromString(message) for message in unread]


class Past(NamedTuple):
    """One change as the model remembers it."""

    revision: int
    key: bytes
    pair: KeyValue
    previous: KeyValue | None
    deleted: bool


class World:
    """A store, a hub, a database, and everything that happened.

    Args:
        recent: how many revisions stay in memory.
        value_bytes: how many bytes of values do.
    """

    def __init__(self, recent: int = 10_000, value_bytes: int = 1 << 20, fragment_bytes: int = 1 << 20) -> None:
        self.clock = Clock()
        self.backend = MemoryBackend()
        self.backend.open()
        self.store = Store(KeyIndex(value_bytes))
        self.past: list[Past] = []
        self.reads = 0
        self.broken = False
        self.replays: list[tuple[Callable[[], Replayed], Callable[[Replayed], None]]] = []
        self.hold_replays = False
        self.hub = WatchHub(
            self.store,
            ResponseEncoder(HeaderEncoder(7, 9), fragment_bytes),
            lambda: 3,
            self.read_history,
            self.clock.callLater,
            Random(1),
            History(2, recent),
        )

    def read_history(self, replay: Replay, replayed: Callable[[Replayed], None], failed: Callable[[], None]) -> None:
        self.reads += 1
        if self.broken:
            failed()
        elif self.hold_replays:
            self.replays.append((lambda: replay.run(self.backend), replayed))
        else:
            self.flush()
            self.clock.callLater(0, lambda: replayed(replay.run(self.backend)))

    def answer_replay(self) -> None:
        """The database has answered."""
        run, replayed = self.replays.pop(0)
        self.flush()
        replayed(run())

    def read_replays(self) -> None:
        """The database has read what was asked of it; the answers are still on their way."""
        self.flush()
        self.replays = [(partial(_same, run()), replayed) for run, replayed in self.replays]

    def flush(self) -> None:
        self.backend.write(self.store.take_batch())

    def write(self, *operations: tuple[bytes, bytes | None], dispatch: bool = True) -> int:
        """One transaction of puts, and deletions where the value is None; its revision."""
        revision = self.change(self.store, *operations)
        if dispatch:
            self.hub.dispatch()
        return revision

    def change(self, store: Store, *operations: tuple[bytes, bytes | None]) -> int:
        """As :meth:`write`, on this member or on the one that leads."""
        revision = store.begin()
        before = {key: self.live(key) for key, _ in operations}
        for key, value in operations:
            if value is None:
                if store.delete(key):
                    tombstone = KeyValue(key=key, mod_revision=revision)
                    self.past.append(Past(revision, key, tombstone, before[key], True))
            else:
                store.put(key, value, 0)
                entry = store.index.entries[key]
                assert isinstance(entry, bytes)
                self.past.append(Past(revision, key, KeyValue.FromString(entry), before[key], False))
        return store.end()

    def leader(self) -> tuple[Store, MemoryBackend]:
        """Another member, which has all that this one has, and its database; what it does this one does not hear of."""
        self.flush()
        backend = MemoryBackend()
        backend.write(Batch(self.backend.scan(0, pack(MAX_MAIN), 1_000_000)))
        records = self.backend.records(Bucket.META)
        backend.write(Batch(records={(Bucket.META, key): value for key, value in records.items()}))
        return load(backend, 1 << 20), backend

    def replace_database(self, backend: MemoryBackend) -> None:
        """A snapshot of another member has come into the database, and not into memory yet."""
        records = backend.records(Bucket.META)
        self.flush()
        self.backend.replace(
            [
                Batch(backend.scan(0, pack(MAX_MAIN), 1_000_000)),
                Batch(records={(Bucket.META, key): value for key, value in records.items()}),
            ]
        )

    def restore(self) -> None:
        """It is in memory."""
        self.store.restore(load(self.backend, 1 << 20))
        self.hub.restored()

    def live(self, key: bytes) -> KeyValue | None:
        """The pair of a key as the model knows it."""
        for change in reversed(self.past):
            if change.key == key:
                return None if change.deleted else change.pair
        return None

    def evict(self) -> None:
        limit, self.store.index.limit_bytes = self.store.index.limit_bytes, 0
        self.store.index.evict()
        self.store.index.limit_bytes = limit

    def compact(self, revision: int) -> None:
        """Compact, with the rows going at once, as the sweeper has it."""
        self.compact_of(self.store, self.backend, revision)

    def compact_of(self, store: Store, backend: MemoryBackend, revision: int) -> None:
        """As :meth:`compact`, on this member or on the one that leads."""
        store.compact(revision)
        backend.write(store.take_batch())
        after = 0
        while True:
            _, after = backend.compact(revision - 1, after, 5)
            if not after:
                return

    def settle(self) -> None:
        """Let everything happen that is due now."""
        for _ in range(10_000):
            if not [call for call in self.clock.getDelayedCalls() if call.getTime() <= self.clock.seconds()]:
                return
            self.clock.advance(0)
        raise AssertionError("rounds without end")

    def open(self) -> tuple[Client, WatchStream]:
        client = Client()
        return client, open_stream(self.hub, client)


def events_of(responses: Sequence[WatchResponse], watch_id: int = 0) -> list[Event]:
    return [event for response in responses if response.watch_id == watch_id for event in response.events]


def create(key: bytes = b"k", **fields: Any) -> WatchCreateRequest:
    return WatchCreateRequest(key=key, **fields)


def _same(replayed: Replayed) -> Replayed:
    return replayed
