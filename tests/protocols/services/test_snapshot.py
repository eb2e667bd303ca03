"""Maintenance.Snapshot as a stream."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.calls import RecordedCall
from tests.test_snapshot import Source
from twistedkv.configload import load_config
from twistedkv.errors import Code, RPCError
from twistedkv.metrics import Metrics
from twistedkv.pb.rpc_pb2 import SnapshotRequest, SnapshotResponse
from twistedkv.protocols.rpc import Access, Kind, Method
from twistedkv.protocols.services.snapshot import BLOB_BYTES, READ_BYTES, answer_snapshot
from twistedkv.storage.bbolt import BoltReader


class SnapshotMember(Source):
    """What the service asks of a member."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.config = load_config({"data-dir": str(directory)}, {})
        self.metrics = Metrics()
        self.reactor = self.clock


class NarrowCall(RecordedCall):
    """A client that takes one message at a time."""

    def send(self, message: bytes) -> None:
        super().send(message)
        self.room = False


class SnapshotStreamTests(SynchronousTestCase):
    """What the client gets, and when."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.member = SnapshotMember(self.directory)
        store, dice = self.member.store, Random(4)
        for number in range(300):
            store.begin()
            store.put(b"key%d" % number, dice.randbytes(10_000), 0)
            store.end()

    def start(self, call: RecordedCall) -> Deferred[None]:
        """Begin to answer ``call``."""
        return Deferred.fromCoroutine(answer_snapshot(self.member, call))  # type: ignore[arg-type]

    def call(self, kind: type[RecordedCall] = RecordedCall) -> RecordedCall:
        """A call of the method."""
        path = "/etcdserverpb.Maintenance/Snapshot"
        method = Method(
            path, Kind.SERVER_STREAM, SnapshotRequest, SnapshotResponse, Access.ADMIN, lambda call: self.fail(path)
        )
        return kind(method)

    def answers(self, call: RecordedCall) -> list[SnapshotResponse]:
        """What was sent so far."""
        return [SnapshotResponse.FromString(message) for message in call.sent]

    def test_blobs_count_down_and_the_hash_follows(self) -> None:
        """Pieces of 32 KiB make the file, the last message its SHA-256, and there is no header, as with etcd."""
        call = self.call()
        done = self.start(call)
        self.member.worker.drain()
        self.successResultOf(done)
        *blobs, last = self.answers(call)
        data = b"".join(each.blob for each in blobs)
        self.assertGreater(len(data), 2 * READ_BYTES)
        self.assertEqual({len(each.blob) for each in blobs[:-1]}, {BLOB_BYTES})
        left = [len(data) - min(BLOB_BYTES * (number + 1), len(data)) for number in range(len(blobs))]
        self.assertEqual([each.remaining_bytes for each in blobs], left)
        self.assertEqual((last.remaining_bytes, last.blob), (0, hashlib.sha256(data).digest()))
        self.assertFalse(any(each.HasField("header") for each in (*blobs, last)))
        self.assertEqual(len(dict(BoltReader(data).items(b"key"))), 300)
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_a_slow_client_is_waited_for(self) -> None:
        """Nothing is sent while the client does not take it, and nothing further is read from the file."""
        call = self.call(NarrowCall)
        call.room = False
        done = self.start(call)
        self.member.worker.drain()
        self.assertEqual(call.sent, [])
        for sent in range(1, 40):
            call.room = True
            assert call.on_writable is not None
            call.on_writable()
            self.member.worker.drain()
            self.assertEqual(len(call.sent), sent)
        self.assertNoResult(done)

    def test_a_client_that_leaves(self) -> None:
        """While the copy is made, or sent, the file goes with the client and the sweeper is free again."""
        for steps in range(6):
            call = self.call()
            call.room = steps < 4
            done = self.start(call)
            for _ in range(steps):
                self.member.worker.step()
            if steps == 5:
                self.member.worker.drain()
            call.done = True
            assert call.on_cancel is not None
            call.on_cancel()
            self.member.worker.drain()
            self.successResultOf(done)
            self.assertEqual(list(self.directory.iterdir()), [])
        self.member.store.compact(200)
        swept = self.member.sweeper.swept(200)
        for _ in range(10):
            self.member.worker.drain()
            self.member.clock.advance(0.1)
        self.successResultOf(swept)

    def test_no_room_for_the_file(self) -> None:
        """The reason of the file system is the client's answer."""
        self.directory.rmdir()
        error = self.failureResultOf(self.start(self.call()), RPCError).value
        self.assertEqual(error.code, Code.INTERNAL)
        self.assertIn("No such file or directory", str(error))
