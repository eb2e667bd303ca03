"""Copies of the state: of one moment, whatever happens while they are made."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import google_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.workers import SteppedWorker
from twistedkv import snapshot
from twistedkv.apply import META_APPLIED_INDEX, META_APPLIED_TERM, META_INSTALLED
from twistedkv.clusternodes import found, version_set
from twistedkv.compaction import Sweeper
from twistedkv.members import MemberInfo, Membership
from twistedkv.metrics import Metrics
from twistedkv.raft.messages import ConfState, SnapshotMeta
from twistedkv.snapshot import StateCopy, copy_state, crc32c_of, revision_key
from twistedkv.storage.backend import MAX_MAIN, BackendError, Batch, Bucket, RevisionRow, pack
from twistedkv.storage.bbolt import BoltReader
from twistedkv.storage.keyindex import KeyIndex
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.mvcc import Store, encode_row
from twistedkv.storage.writebehind import WriteBehind
from twistedkv.v2store import V2Store
from twistedkv.v2text import decode

ME = MemberInfo(0x1C, ("http://192.0.2.1:2380",), "m1")


class Source:
    """A store, its write-behind and its sweeper, on a storage thread that runs when told to."""

    def __init__(self) -> None:
        self.clock = self.reactor = Clock()
        self.worker = SteppedWorker()
        self.backend = MemoryBackend()
        self.store = Store(KeyIndex(1 << 20))
        self.v2 = V2Store()
        self.applied = 0
        self.failures: list[Any] = []
        self.write_behind = WriteBehind(self.backend, self.worker, self._take, self.clock, self.failures.append)
        self.sweeper = Sweeper(self.store, self.read_backend, self.clock, -1, Metrics())
        self.store.record(Bucket.MEMBERS, b"%x" % ME.id, ME.to_json())

    def read_backend(self, function: Any, *arguments: Any) -> Deferred[Any]:
        return self.write_behind.read(function, self.backend, *arguments)

    def on_storage_thread(self, function: Any, *arguments: Any) -> Deferred[Any]:
        return self.worker.run(function, self.backend, *arguments)

    def change(self, dice: Random) -> None:
        """Apply one entry: a put, a deletion, a lease or a compaction."""
        store, key = self.store, b"key%d" % dice.randrange(6)
        store.begin()
        kind = dice.randrange(10)
        if kind < 6:
            store.put(key, b"v" * dice.choice((0, 3, 5_000)), 0)
        elif kind < 8:
            store.delete(key)
        elif kind < 9:
            store.record(Bucket.LEASES, bytes([dice.randrange(3)]), b"" if dice.random() < 0.5 else b"lease")
        elif store.revision > max(store.compacted, 0):
            store.compact(dice.randint(max(store.compacted, 0) + 1, store.revision))
            self.sweeper.sweep()
        store.end()
        self.applied += 1
        self.v2.directory.set("/1/applied", False, str(self.applied), dice.choice((0, 10**18)))
        self.write_behind.dirty(0, 0)

    def _take(self) -> Batch:
        self.v2.records.drain(self.store.record)
        self.store.record(Bucket.META, META_APPLIED_INDEX, b"%d" % self.applied)
        self.store.record(Bucket.META, META_APPLIED_TERM, b"3")
        return self.store.take_batch()


def keys_of(backend: MemoryBackend) -> dict[bytes, bytes]:
    """The ``key`` bucket that the rows of a backend make."""
    return {revision_key(row): encode_row(row) for row in backend.scan(0, pack(MAX_MAIN), 1_000_000)}


def read(copy: StateCopy) -> dict[bytes, dict[bytes, bytes]]:
    """The buckets of a finished copy."""
    reader = BoltReader(copy.read(copy.size_bytes + 1))
    return {name: dict(reader.items(name)) for name in reader.buckets}


class ConsistencyTests(SynchronousTestCase):
    """What is in the file."""

    @given(st.integers(0, 2**32))
    @settings(max_examples=60, deadline=None)
    def test_it_is_of_one_moment(self, seed: int) -> None:
        """Writes, leases and compactions go on while it is made: it is the state as of the index that it names."""
        self.patch(snapshot, "ROWS_AT_A_TIME", 3)
        dice, source = Random(seed), Source()
        for _ in range(dice.randrange(60)):
            source.change(dice)
            if dice.random() < 0.2:
                source.clock.advance(0.1)
                source.worker.drain()
        states: dict[int, tuple[dict[bytes, bytes], dict[bytes, bytes]]] = {}
        copying = ensureDeferred(copy_state(source, Path(os.curdir), lambda: True))
        while not copying.called:
            if source.worker.queue:
                source.worker.step()
                applied = int(source.backend.records(Bucket.META).get(META_APPLIED_INDEX, b"0"))
                states.setdefault(applied, (keys_of(source.backend), source.backend.records(Bucket.LEASES)))
            if dice.random() < 0.7:
                source.change(dice)
            source.clock.advance(dice.choice((0, 0.01, 0.1)))
        copy = self.successResultOf(copying)
        assert copy is not None
        self.addCleanup(copy.close)
        found = read(copy)
        keys, leases = states[copy.applied]
        self.assertEqual(found[b"key"], keys)
        self.assertEqual(found[b"lease"], leases)
        self.assertEqual(found[b"meta"][b"consistent_index"], copy.applied.to_bytes(8, "big"))
        (_, tree, history) = decode(copy.v2_store)
        if copy.applied:  # else nothing was written, and the tree is made for the members
            self.assertEqual((tree.index, len(history.events)), (copy.applied, copy.applied))
            node = tree.node("/1/applied")
            assert node is not None
            self.assertEqual(node.value, str(copy.applied))
        self.assertEqual(source.failures, [])

    def test_etcds_buckets(self) -> None:
        """Every bucket of etcd 3.5 is there, under its name and in its form."""
        source = Source()
        store = source.store
        for value in (b"1", b"2"):
            store.begin()
            store.put(b"a", value, 7)
            store.put(b"b", value, 0)
            store.end()
        store.begin()
        store.delete(b"b")
        store.end()
        store.compact(2)
        source.sweeper.sweep()
        store.record(Bucket.CLUSTER, b"clusterVersion", b"3.5.0")
        source.applied = 9
        source.worker.drain()
        copying = ensureDeferred(copy_state(source, Path(os.curdir), lambda: True))
        source.worker.drain()
        copy = self.successResultOf(copying)
        assert copy is not None
        self.addCleanup(copy.close)
        found = read(copy)
        names = "alarm auth authRoles authUsers cluster key lease members members_removed meta"
        self.assertEqual([name.decode() for name in found], names.split())
        self.assertEqual(found[b"auth"], {b"authRevision": bytes(7) + b"\x01"})
        self.assertEqual(found[b"cluster"], {b"clusterVersion": b"3.5.0"})
        self.assertEqual(found[b"members"], {b"1c": b'{"id":28,"peerURLs":["http://192.0.2.1:2380"],"name":"m1"}'})
        main = [bytes(7) + bytes([number]) for number in range(10)]
        self.assertEqual(
            found[b"meta"],
            {
                b"consistent_index": main[9],
                b"term": main[3],
                b"confState": b'{"voters":[28],"auto_leave":false}',
                b"scheduledCompactRev": main[2] + b"_" + main[0],
                b"finishedCompactRev": main[2] + b"_" + main[0],
            },
        )
        expected = [
            (main[2] + b"_" + main[0], b"\n\x01a\x10\x02\x18\x02 \x01*\x011\x30\x07"),
            (main[2] + b"_" + main[1], b"\n\x01b\x10\x02\x18\x02 \x01*\x011"),
            (main[3] + b"_" + main[0], b"\n\x01a\x10\x02\x18\x03 \x02*\x012\x30\x07"),
            (main[3] + b"_" + main[1], b"\n\x01b\x10\x02\x18\x03 \x02*\x012"),
            (main[4] + b"_" + main[0] + b"t", b"\n\x01b"),
        ]
        self.assertEqual(list(found[b"key"].items()), expected)

    def test_what_is_said_of_it(self) -> None:
        """Index, term, members, their text and a checksum are of the moment that the file is of."""
        source = Source()
        source.store.record(Bucket.CLUSTER, b"clusterVersion", b"3.5.0")
        source.store.record(Bucket.MEMBERS_REMOVED, b"7", b"removed")
        found(source.v2.directory, Membership({ME.id: ME}, [7]), "3.5.0")
        for _ in range(3):
            source.store.begin()
            source.store.put(b"key", bytes(100_000), 0)
            source.store.end()
            source.applied += 1
        self.patch(snapshot, "BYTES_AT_A_TIME", 10_000)
        copying = ensureDeferred(copy_state(source, Path(os.curdir), lambda: True))
        source.worker.step()
        source.worker.step()
        source.store.record(Bucket.MEMBERS, b"1c", MemberInfo(0x1C, ME.peer_urls, "later").to_json())
        source.store.record(Bucket.CLUSTER, b"clusterVersion", b"3.6.0")
        version_set(source.v2.directory, "3.6.0")
        source.applied += 1
        source.write_behind.dirty(0, 0)
        for _ in range(100):
            source.clock.advance(0.1)
            source.worker.drain()
        copy = self.successResultOf(copying)
        assert copy is not None
        self.addCleanup(copy.close)
        self.assertEqual(copy.meta, SnapshotMeta(3, 3, ConfState((ME.id,))))
        membership, version = decode(copy.v2_store).facts
        self.assertEqual((membership.members, membership.removed, version), ({ME.id: ME}, {7}, "3.5.0"))
        data = copy.read(copy.size_bytes + 1)
        self.assertEqual((len(data), copy.crc32c), (copy.size_bytes, google_crc32c.value(data)))
        self.assertGreater(copy.size_bytes, 300_000)
        path = Path(self.mktemp())
        path.write_bytes(data)
        with path.open("rb") as file:
            file.read(5)
            self.assertEqual(crc32c_of(file), copy.crc32c)

    def test_an_empty_store(self) -> None:
        """A member without a key can be copied too."""
        source = Source()
        copying = ensureDeferred(copy_state(source, Path(os.curdir), lambda: True))
        source.worker.drain()
        copy = self.successResultOf(copying)
        assert copy is not None
        self.addCleanup(copy.close)
        self.assertEqual(read(copy)[b"key"], {})
        self.assertEqual(copy.revision, 1)


class EndTests(SynchronousTestCase):
    """What is left when it ends early."""

    def setUp(self) -> None:
        self.source = Source()
        dice = Random(1)
        for _ in range(1_000):
            self.source.change(dice)
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def test_a_copy_that_is_not_wanted_any_more(self) -> None:
        """It is given up between two steps, the sweeper goes on, and no file is left."""
        wanted = [True]
        copying = ensureDeferred(copy_state(self.source, self.directory, lambda: wanted[0]))
        for _ in range(3):
            self.source.worker.step()
        self.assertNoResult(copying)
        wanted[0] = False
        self.source.worker.drain()
        self.assertIsNone(self.successResultOf(copying))
        self.assertEqual(list(self.directory.iterdir()), [])
        self.assert_sweeps()

    def test_a_database_that_refuses(self) -> None:
        """The error comes out, and the sweeper goes on."""

        def refuse(*_: Any) -> Any:
            raise BackendError("the disk is gone")

        copying = ensureDeferred(copy_state(self.source, self.directory, lambda: True))
        self.source.worker.step()
        self.patch(self.source.backend, "scan", refuse)
        self.source.worker.drain()
        self.failureResultOf(copying, BackendError)
        self.assert_sweeps()

    def test_a_state_that_is_replaced_meanwhile(self) -> None:
        """A snapshot of another member that comes in between ends it, for the rest of what was to be copied is gone."""
        self.patch(snapshot, "ROWS_AT_A_TIME", 5)
        scans: list[int] = []
        scan = self.source.backend.scan

        def counted(first: int, last: int, limit: int) -> list[RevisionRow]:
            scans.append(first)
            return scan(first, last, limit)

        self.patch(self.source.backend, "scan", counted)
        copying = ensureDeferred(copy_state(self.source, self.directory, lambda: True))
        while len(scans) < 3:
            self.source.worker.step()
        self.assertNoResult(copying)
        self.source.backend.replace([Batch(records={(Bucket.META, META_INSTALLED): b"99"})])
        self.source.worker.drain()
        self.failureResultOf(copying, BackendError)
        self.assertEqual(list(self.directory.iterdir()), [])
        self.assert_sweeps()

    def test_a_directory_that_is_not_there(self) -> None:
        """The error of the file system comes out."""
        copying = ensureDeferred(copy_state(self.source, self.directory / "missing", lambda: True))
        self.failureResultOf(copying, FileNotFoundError)
        self.assert_sweeps()

    def assert_sweeps(self) -> None:
        """Nobody holds the sweeper."""
        self.source.store.begin()
        self.source.store.put(b"one more", b"", 0)
        self.source.store.end()
        self.source.store.compact(self.source.store.revision)
        swept = self.source.sweeper.swept(self.source.store.revision)
        for _ in range(20):
            self.source.worker.drain()
            self.source.clock.advance(0.1)
        self.successResultOf(swept)
