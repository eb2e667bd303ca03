"""A member that is killed at any moment keeps every write it acknowledged.

``TWISTEDKV_CRASH_ROUNDS`` (3) and ``TWISTEDKV_CRASH_SEED`` (1) ask for more, or for another sequence.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.clients import GrpcClient
from tests.functional.crash import FAST_ELECTION, Auditor, CrashTest, Violation
from tests.functional.model import StoreModel
from tests.functional.processes import (
    MISSING_ETCD,
    NOT_ETCD_ITSELF,
    EtcdProcess,
    ServerProcess,
    TLSFiles,
    TwistedkvProcess,
)
from twistedkv.pb import rpc_pb2 as pb
from twistedkv.pb.kv_pb2 import KeyValue

_ROUNDS = int(os.environ.get("TWISTEDKV_CRASH_ROUNDS", "3"))
_SEED = int(os.environ.get("TWISTEDKV_CRASH_SEED", "1"))


class CrashCase(SynchronousTestCase):
    """Starts the server of a test."""

    def start(self, kind: type[ServerProcess]) -> ServerProcess:
        """A new, running server; it stops when the test ends."""
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        server = kind(Path(scratch.name) / "server", TLSFiles.make(Path(scratch.name) / "tls"), FAST_ELECTION)
        self.addCleanup(server.stop)
        server.start()
        return server


class CrashTests(CrashCase):
    """twistedkv."""

    def test_acknowledged_writes_survive_kill_9(self) -> None:
        """However often a member is killed under load, no acknowledged write is lost and no revision is repeated."""
        crash_test = CrashTest(self.start(TwistedkvProcess), Random(_SEED))
        for number in range(_ROUNDS):
            crash_test.round(number)
        self.assertGreaterEqual(crash_test.auditor.acknowledged, 20 * _ROUNDS)


class ForgetfulEtcd(EtcdProcess):
    """Comes back from every kill without its data."""

    def kill9(self) -> None:
        """Kill it, and delete what it had on disk."""
        super().kill9()
        shutil.rmtree(self.directory / "data")


class EtcdCrashTests(CrashCase):
    """Real etcd, which shows that the audit asks for what etcd keeps."""

    skip = MISSING_ETCD

    def test_etcd_passes_the_audit(self) -> None:
        """Real etcd survives the same rounds: the model of HashKV and of revisions is etcd's own."""
        crash_test = CrashTest(self.start(EtcdProcess), Random(_SEED))
        for number in range(2):
            crash_test.round(number)
        self.assertGreaterEqual(crash_test.auditor.acknowledged, 40)

    test_etcd_passes_the_audit.skip = NOT_ETCD_ITSELF  # type: ignore[attr-defined]

    def test_a_server_that_forgets_is_found(self) -> None:
        """A server that loses its disk in the kill does not pass."""
        with self.assertRaisesRegex(Violation, "are lost: the store is at 1"):
            CrashTest(self.start(ForgetfulEtcd), Random(_SEED)).round(0)

    def test_hash_of_a_compacted_history_is_etcds(self) -> None:
        """The model's HashKV equals etcd's after compactions, also for keys that changed since, and with none left."""
        client = GrpcClient(self.start(EtcdProcess))
        self.addCleanup(client.close)
        model = StoreModel()
        random = Random(_SEED)
        for number in range(40):
            key = random.choice([b"a", b"b", b"c"])
            if number >= 36 and model.live:
                key = min(model.live)  # in the end nothing is left
            if key in model.live and (random.random() < 0.3 or number >= 36):
                client.call(pb.DeleteRangeRequest(key=key))
                model.apply({key: None})
            elif number < 36:
                client.call(pb.PutRequest(key=key, value=b"%d" % number))
                model.apply({key: b"%d" % number})
            if number % 9 == 8:
                client.call(pb.CompactionRequest(revision=model.revision - 3, physical=True))
                model.compact(model.revision - 3)
            answer = client.call(pb.HashKVRequest()).message
            assert isinstance(answer, pb.HashKVResponse)
            self.assertEqual((answer.header.revision, answer.hash), (model.revision, model.hash_kv()), number)
        self.assertEqual(model.live, {})


class FakeHistory:
    """A server's past out of a list of changes; tests break it."""

    def __init__(self, history: Sequence[dict[bytes, bytes | None]]) -> None:
        self.models = [StoreModel()]
        for length in range(len(history)):
            model = StoreModel()
            for changes in history[: length + 1]:
                model.apply(changes)
            self.models.append(model)

    def revision(self) -> int:
        """The last."""
        return self.models[-1].revision

    def puts_at(self, revision: int) -> tuple[Sequence[KeyValue], int]:
        """As of then."""
        live = self.live_at(revision)
        return [kv for kv in live if kv.mod_revision == revision], len(live)

    def live_at(self, revision: int) -> Sequence[KeyValue]:
        """As of then."""
        return list(self.models[revision - 1].live.values())

    def hash_kv(self) -> int:
        """Of the last."""
        return self.models[-1].hash_kv()


class AuditorTests(SynchronousTestCase):
    """The audit examined: it passes a kept promise and names each broken one."""

    def setUp(self) -> None:
        self.written: list[dict[bytes, bytes | None]] = [{b"a": b"1"}, {b"b": b"2"}, {b"a": None, b"c": b"3"}]
        self.auditor = Auditor()
        for revision, changes in enumerate(self.written[:2], 2):
            self.auditor.acknowledge(revision, changes)

    def test_a_kept_promise_passes(self) -> None:
        """Acknowledged writes that are all there pass, with or without the one that was in doubt."""
        self.auditor.leave_in_doubt({b"a": None, b"c": b"3", b"nothing there": None})
        self.auditor.audit(FakeHistory(self.written[:2]))
        self.auditor.leave_in_doubt(self.written[2])
        self.auditor.audit(FakeHistory(self.written))
        self.assertEqual((self.auditor.adopted, self.auditor.model.revision), (1, 4))

    def test_a_lost_write_is_found(self) -> None:
        """An acknowledged write that is gone is a violation."""
        with self.assertRaisesRegex(Violation, r"\[3\] are lost"):
            self.auditor.audit(FakeHistory(self.written[:1]))

    def test_a_changed_write_is_found(self) -> None:
        """A revision that holds something else than what was acknowledged is a violation."""
        with self.assertRaisesRegex(Violation, "acknowledged as"):
            self.auditor.audit(FakeHistory([{b"a": b"1"}, {b"b": b"other"}]))

    def test_a_write_of_nobody_is_found(self) -> None:
        """A revision that no writer asked for is a violation."""
        with self.assertRaisesRegex(Violation, "written by nobody"):
            self.auditor.audit(FakeHistory(self.written))

    def test_a_repeated_revision_is_found(self) -> None:
        """The same revision for two writes is a violation, in one round and over two."""
        with self.assertRaisesRegex(Violation, "given out twice"):
            self.auditor.acknowledge(3, {b"x": b"y"})
        self.auditor.audit(FakeHistory(self.written[:2]))
        with self.assertRaisesRegex(Violation, "given out twice"):
            self.auditor.acknowledge(3, {b"x": b"y"})

    def test_a_store_that_goes_back_is_found(self) -> None:
        """A store that comes back older than it was seen is a violation."""
        self.auditor.audit(FakeHistory(self.written[:2]))
        with self.assertRaisesRegex(Violation, "went back"):
            self.auditor.audit(FakeHistory(self.written[:1]))

    def test_a_failing_writer_is_heard(self) -> None:
        """What a writer runs into ends the wait and the audit, and too few writes end the wait."""
        with self.assertRaisesRegex(Violation, "2 of 3 writes"):
            self.auditor.wait_for(3, 0.01)
        self.auditor.fail(ZeroDivisionError())
        with self.assertRaises(ZeroDivisionError):
            self.auditor.wait_for(3, 0.01)
        with self.assertRaises(ZeroDivisionError):
            self.auditor.audit(FakeHistory(self.written[:2]))

    def test_a_rewritten_past_is_found(self) -> None:
        """An old revision that changed behind the newest values shows in HashKV."""
        self.auditor.acknowledge(4, {b"a": b"4"})
        history = FakeHistory([*self.written[:2], {b"a": b"4"}])
        forged = FakeHistory([{b"a": b"0"}, {b"b": b"2"}, {b"a": b"4"}])
        history.hash_kv = forged.hash_kv  # type: ignore[method-assign]
        with self.assertRaisesRegex(Violation, "HashKV"):
            self.auditor.audit(history)
