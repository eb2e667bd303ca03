"""A member's life as its operator sees it: stop and start, damage, mix-ups, signals under load, hostile requests."""

from __future__ import annotations

import http.client
import os
import re
import select
import shutil
import signal
import socket
import sqlite3
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from random import Random
from typing import ClassVar, NamedTuple

from google.protobuf.message import Message
from twisted.trial.unittest import SynchronousTestCase

from tests.functional.clients import GrpcClient
from tests.functional.crash import Auditor, ServerHistory, Writer
from tests.functional.processes import (
    MISSING_ETCD,
    EtcdProcess,
    ServerFailed,
    ServerProcess,
    TLSFiles,
    TwistedkvProcess,
    free_ports,
)
from twistedkv.pb import rpc_pb2 as pb
from twistedkv.protocols.server import PREFACE
from twistedkv.storage.backend import main_of
from twistedkv.storage.wal import WAL

_TIMEOUT_S = 20.0
_ALL = {"key": b"\x00", "range_end": b"\x00"}


class Row(NamedTuple):
    """One row of the database's table of revisions."""

    revision: int
    key: bytes
    value: bytes
    create_revision: int
    version: int
    tombstone: bool


class LifecycleCase(SynchronousTestCase):
    """A directory for each test, with a space in its name, and servers that stop when the test ends."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="a member ")
        self.addCleanup(scratch.cleanup)
        self.directory = Path(scratch.name)

    def server(self, *options: str, name: str = "server", tls: TLSFiles | None = None) -> TwistedkvProcess:
        """A server that is not started yet."""
        server = TwistedkvProcess(self.directory / name, tls, options)
        self.addCleanup(server.stop)
        return server

    def client(self, server: ServerProcess) -> GrpcClient:
        """A client that closes when the test ends."""
        client = GrpcClient(server)
        self.addCleanup(client.close)
        return client

    def ask(self, client: GrpcClient, request: Message) -> Message:
        """The answer to a request that must not fail."""
        reply = client.call(request)
        assert reply.message is not None, f"{reply.code} {reply.text}: {request}"
        return reply.message

    def put(self, client: GrpcClient, key: bytes, value: bytes) -> int:
        """Put, and give the revision of it."""
        answer = self.ask(client, pb.PutRequest(key=key, value=value))
        assert isinstance(answer, pb.PutResponse)
        return answer.header.revision

    def state(self, client: GrpcClient) -> pb.RangeResponse:
        """All keys, without what a restart may change."""
        answer = self.ask(client, pb.RangeRequest(**_ALL))
        assert isinstance(answer, pb.RangeResponse)
        answer.header.raft_term = 0
        return answer

    def filled(self, server: TwistedkvProcess, puts: int) -> None:
        """Start ``server``, put something, and stop it."""
        server.start()
        client = GrpcClient(server)
        for number in range(puts):
            self.put(client, b"key/%d" % number, b"value/%d" % number)
        client.close()
        server.stop()

    def assert_refused(self, server: TwistedkvProcess, pattern: str) -> re.Match[str]:
        """The start ends with status 2 and one line, and changes no file."""
        before = files_in(server.directory / "data")
        result = server.run_to_end()
        self.assertEqual(result.returncode, 2, result.stdout + result.stderr)
        match = re.fullmatch(rf"twistedkv: [^\n]*{pattern}[^\n]*\n", result.stderr)
        assert match is not None, result.stderr
        self.assertEqual(files_in(server.directory / "data"), before)
        return match


def rows_of(database: Path) -> list[Row]:
    """The revisions in an SQLite database that no server has open."""
    statement = "SELECT revision, key, value, create_revision, version, tombstone FROM revisions ORDER BY revision"
    with closing(sqlite3.connect(database)) as connection:
        return [Row(main_of(row[0]), *row[1:]) for row in connection.execute(statement)]


def number_in(database: Path, name: str) -> int:
    """A figure from the table of single values."""
    with closing(sqlite3.connect(database)) as connection:
        (value,) = connection.execute("SELECT value FROM meta WHERE key = ?", (name.encode(),)).fetchone()
    return int(value)


def segments_of(server: ServerProcess) -> list[Path]:
    """The files of its write-ahead log, oldest first."""
    return sorted((server.directory / "data" / "wal").glob("*.wal"))


def used_bytes(segment: Path) -> int:
    """Where the zeros begin that the end of a segment is made of."""
    return len(segment.read_bytes().rstrip(b"\0"))


def files_in(directory: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file below ``directory`` with its time and content."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.rglob("*") if path.is_file()}


class Http2Watcher:
    """An HTTP/2 connection without requests that waits for the server's goodbye. (``h2`` takes the PING that follows a
    GOAWAY for an error.)"""

    _SETTINGS, _GOAWAY = 4, 7  # RFC 9113 §6.5, §6.8

    def __init__(self, server: ServerProcess) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), _TIMEOUT_S)
        self._stream = self._socket.makefile("rb")
        self._socket.sendall(PREFACE + bytes((0, 0, 0, self._SETTINGS, 0, 0, 0, 0, 0)))
        self._wait_for(self._SETTINGS)

    def error_code(self) -> int:
        """Wait for the server's GOAWAY, and hang up; the error code in it."""
        with self._socket, self._stream:
            return int.from_bytes(self._wait_for(self._GOAWAY)[4:8], "big")

    def _wait_for(self, wanted: int) -> bytes:
        while True:
            header = self._stream.read(9)  # RFC 9113 §4.1: 3 length, 1 type, 1 flags, 4 stream
            assert len(header) == 9, "the connection ended without a word"
            payload = self._stream.read(int.from_bytes(header[:3], "big"))
            if header[3] == wanted:
                return payload


class RestartTests(LifecycleCase):
    """SIGTERM and a new start."""

    def test_data_is_there_again(self) -> None:
        """Every key comes back with its revisions, and the next write has the next revision."""
        database = self.directory / "another place" / "keys.db"
        database.parent.mkdir()
        server = self.server("--storage", f"sqlite:///{database}", tls=TLSFiles.make(self.directory / "tls"))
        server.start()
        client = self.client(server)
        for number in range(30):
            self.put(client, b"key/%d" % (number % 20), b"value/%d" % number)
        self.ask(client, pb.DeleteRangeRequest(key=b"key/3"))
        before = self.state(client)
        self.assertEqual((before.count, before.header.revision), (19, 32))
        client.close()
        server.restart()
        self.assertTrue(database.exists())
        self.assertFalse((server.directory / "data" / "twistedkv.db").exists())
        again = self.client(server)
        self.assertEqual(self.state(again), before)
        self.assertEqual(self.put(again, b"key/3", b"new"), 33)

    def test_stop_leaves_everything_in_order(self) -> None:
        """After SIGTERM the database holds every row and is one file, the log is closed and applied to its end, clients
        were told to go, the exit status is 0, and the pid file is gone."""
        server = self.server()
        server.twistd_options = ("-n", f"--pidfile={self.directory / 'pid'}")
        server.start()
        self.assertEqual(int((self.directory / "pid").read_text()), server.pid)
        client = self.client(server)
        expected = []
        for number in range(40):
            key, value = b"key/%d" % (number % 7), b"value/%d" % number
            revision = self.put(client, key, value)
            expected.append(Row(revision, key, value, 2 + number % 7, 1 + number // 7, False))
        self.ask(client, pb.DeleteRangeRequest(key=b"key/0"))
        expected.append(Row(42, b"key/0", b"", 0, 0, True))
        watcher = Http2Watcher(server)
        with ThreadPoolExecutor() as threads:
            error_code = threads.submit(watcher.error_code)
            self.assertEqual(server.stop(), 0)
            self.assertEqual(error_code.result(_TIMEOUT_S), 0)
        self.assertFalse((self.directory / "pid").exists())
        data = server.directory / "data"
        self.assertEqual({path.name for path in data.iterdir()}, {"lock", "twistedkv.db", "wal"})
        self.assertEqual(rows_of(data / "twistedkv.db"), expected)
        wal, recovered = WAL.open(data / "wal")
        wal.close()
        self.assertEqual(recovered.truncated_bytes, 0)
        self.assertEqual(recovered.entries[-1].index, number_in(data / "twistedkv.db", "applied_index"))


class DamagedLogTests(LifecycleCase):
    """A write-ahead log that is not as it was written."""

    def test_damage_in_the_middle_stops_the_start(self) -> None:
        """One flipped bit is one line that names file and offset; no file is touched; flipping it back is enough."""
        server = self.server()
        self.filled(server, 60)
        (segment,) = segments_of(server)
        position = used_bytes(segment) // 2
        flip(segment, position)
        named = int(self.assert_refused(server, rf"{re.escape(str(segment))}: offset (\d+): ")[1])
        self.assertTrue(position - 300 < named <= position, f"{named} for {position}")  # the record that holds it
        flip(segment, position)
        server.start()
        self.assertEqual(self.state(self.client(server)).count, 60)

    def test_garbage_after_the_last_record_does_not_stop_it(self) -> None:
        """What a crash left of a record that nobody was promised is cut off."""
        server = self.server()
        revisions = self._killed(server)
        (segment,) = segments_of(server)
        with segment.open("r+b") as file:
            file.seek(used_bytes(segment) + -used_bytes(segment) % 8)
            file.write(Random(1).randbytes(400))
        server.start()
        client = self.client(server)
        self.assertEqual(self._revisions(client), revisions)
        self.assertEqual(self.put(client, b"next", b""), revisions[-1] + 1)

    def test_half_of_the_last_record_does_not_stop_it(self) -> None:
        """All that was acknowledged before is there, from the log alone."""
        server = self.server()
        revisions = self._killed(server)
        (segment,) = segments_of(server)
        os.truncate(segment, used_bytes(segment) - 40)  # the last put is longer
        for database in (server.directory / "data").glob("twistedkv.db*"):
            database.unlink()  # which the log is always ahead of
        server.start()
        client = self.client(server)
        self.assertEqual(self._revisions(client), revisions[:-1])
        self.assertEqual(self.put(client, b"next", b""), revisions[-1])

    def _killed(self, server: TwistedkvProcess) -> list[int]:
        """Put some keys and kill the server; the revisions it acknowledged."""
        server.start()
        client = GrpcClient(server)
        revisions = [self.put(client, b"key/%d" % number, b"%d" % number * 20) for number in range(20)]
        client.close()
        server.kill9()
        return revisions

    def _revisions(self, client: GrpcClient) -> list[int]:
        return sorted(kv.mod_revision for kv in self.state(client).kvs)


class MixUpTests(LifecycleCase):
    """A log and a database that do not belong together."""

    def test_log_is_missing(self) -> None:
        """Data without its log is not taken for a whole."""
        server = self.server()
        self.filled(server, 3)
        log = server.directory / "data" / "wal"
        shutil.rmtree(log)
        self.assert_refused(server, rf"holds data, but its write-ahead log {re.escape(str(log))} is missing")

    def test_database_of_another_member(self) -> None:
        """Two members' directories cannot be mixed."""
        ours, theirs = self.server(name="ours"), self.server(name="theirs")
        self.filled(ours, 3)
        self.filled(theirs, 3)
        shutil.copy(theirs.directory / "data" / "twistedkv.db", ours.directory / "data" / "twistedkv.db")
        self.assert_refused(ours, r"ours/data/twistedkv\.db belongs to member [0-9a-f]+ and not to [0-9a-f]+, whose")

    def test_database_from_an_older_copy(self) -> None:
        """A copy is brought up to date from the log as far back as that goes; an older one is refused, in words."""
        server = self.server("--snapshot-count", "40")
        database, copy = server.directory / "data" / "twistedkv.db", self.directory / "copy"
        self.filled(server, 3)
        shutil.copy(database, copy)
        server.start()
        client = GrpcClient(server)
        for number in range(20):
            self.put(client, b"later/%d" % number, b"")
        client.close()
        server.stop()
        shutil.copy(copy, database)
        self.filled(server, 40)
        self.assertEqual(len(rows_of(database)), 63)
        shutil.copy(copy, database)
        self.assert_refused(server, r"data/twistedkv\.db is too old for its write-ahead log: it is at index \d+, and")


class Daemon(TwistedkvProcess):
    """twistedkv in the background, known by its pid file."""

    label = "twistedkv daemon"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.pid_path, self.log_path = directory / "pid", directory / "twistd.log"
        self.twistd_options = (f"--pidfile={self.pid_path}", f"--logfile={self.log_path}")

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return int(self.pid_path.read_text())

    def start(self) -> None:
        """Run twistd until it says that the daemon serves."""
        self.directory.mkdir(exist_ok=True)
        result = self.run_to_end()
        if (result.returncode, result.stderr) != (0, ""):
            raise ServerFailed(f"twistd ended with {result.returncode}: {result.stderr}")

    def stop(self) -> int:
        """End it in order, and wait until it has; its status is only known to init."""
        if not self.pid_path.exists():
            return 0
        pid = self.pid
        with os.fdopen(os.pidfd_open(pid)) as process:
            os.kill(pid, signal.SIGTERM)
            ended, _, _ = select.select([process], [], [], _TIMEOUT_S)
            if not ended:
                os.kill(pid, signal.SIGKILL)
                raise ServerFailed(f"the daemon does not end:\n{self.log_tail()}")
        return 0


class DaemonTests(LifecycleCase):
    def test_signals_under_load(self) -> None:
        """SIGHUP rotates the log and no request fails; SIGTERM ends it with requests under way, and the next start has
        every write that was answered, as it was answered."""
        daemon = Daemon(self.directory / "daemon")
        self.addCleanup(daemon.stop)
        daemon.start()
        auditor = Auditor()
        writers = [Writer(f"writer {number}", daemon, auditor, Random(number)) for number in range(4)]
        for writer in writers:
            writer.start()
        rotated = daemon.log_path.with_name("twistd.log.1")
        try:
            auditor.wait_for(100, _TIMEOUT_S)
            os.kill(daemon.pid, signal.SIGHUP)
            deadline = time.monotonic() + _TIMEOUT_S
            while not rotated.exists() and time.monotonic() < deadline:
                auditor.wait_for(auditor.acknowledged + 20, _TIMEOUT_S)
            auditor.wait_for(auditor.acknowledged + 100, _TIMEOUT_S)
            self.assertTrue(all(writer.is_alive() for writer in writers), "a request failed")
        finally:
            daemon.stop()
            for writer in writers:
                writer.join(_TIMEOUT_S)
        self.assertIn("ready to serve", rotated.read_text())
        self.assertNotIn("ready to serve", daemon.log_path.read_text())
        self.assertFalse(daemon.pid_path.exists())
        acknowledged = auditor.acknowledged
        daemon.start()
        auditor.audit(ServerHistory(self.client(daemon)))
        self.assertGreaterEqual(acknowledged, 200)


class OptionTests(LifecycleCase):
    def test_periodic_compaction(self) -> None:
        """With a second of retention, what is older than that goes by itself, from memory and from the database."""
        server = self.server("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1s")
        server.start()
        client = self.client(server)
        for number in range(10):
            self.put(client, b"key", b"%d" % number)
        deadline = time.monotonic() + _TIMEOUT_S
        while b"compacted up to revision 11\n" not in server.log_path.read_bytes() and time.monotonic() < deadline:
            self.state(client)  # paces the questions
        reply = client.call(pb.RangeRequest(key=b"key", revision=10))
        self.assertEqual((reply.code, reply.text), (11, "etcdserver: mvcc: required revision has been compacted"))
        self.assertEqual([kv.value for kv in self.state(client).kvs], [b"9"])
        server.stop()
        rows = rows_of(server.directory / "data" / "twistedkv.db")
        # What the compact revision itself made superfluous stays until the next compaction.
        self.assertEqual([(row.revision, row.value) for row in rows], [(10, b"8"), (11, b"9")])

    def test_monitoring_port_and_unsafe_no_fsync(self) -> None:
        """--listen-metrics-urls serves the plain endpoints, and only those, over HTTP/1.1; a member that does not wait
        for its disk says so, and still keeps what it was told."""
        (port,) = free_ports(1)
        server = self.server("--listen-metrics-urls", f"http://127.0.0.1:{port}", "--unsafe-no-fsync")
        server.start()
        self.assertIn("--unsafe-no-fsync: a power cut will lose", server.log_tail())
        client = self.client(server)
        self.put(client, b"key", b"value")
        expected = {"/health": 200, "/livez": 200, "/readyz": 200, "/metrics": 200, "/version": 404, "/v3/kv/put": 404}
        answers = {path: self._get(port, path) for path in expected}
        self.assertEqual({path: status for path, (status, _) in answers.items()}, expected)
        self.assertIn(b"etcd_mvcc_put_total 1\n", answers["/metrics"][1])
        with socket.create_connection(("127.0.0.1", port), _TIMEOUT_S) as http2:
            http2.sendall(PREFACE)
            self.assertEqual(http2.recv(1), b"")
        server.restart()
        self.assertEqual(self.state(self.client(server)).count, 1)

    @staticmethod
    def _get(port: int, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
        with closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()


class BadInputTests(LifecycleCase):
    """Requests that twistedkv refuses as etcd does; the subclass says that etcd does so."""

    kind: ClassVar[type[ServerProcess]] = TwistedkvProcess

    def test_refusals_change_nothing(self) -> None:
        """Code and text are etcd's, and the revision counts only what worked."""
        server = self.kind(self.directory / "server", TLSFiles.make(self.directory / "tls"))
        self.addCleanup(server.stop)
        server.start()
        client = self.client(server)
        for number in range(3):
            self.put(client, b"key", b"%d" % number)
        self.ask(client, pb.CompactionRequest(revision=3))
        before = self.state(client)
        invalid, exhausted, out_of_range = 3, 8, 11
        compacted = (out_of_range, "etcdserver: mvcc: required revision has been compacted")
        future = (out_of_range, "etcdserver: mvcc: required revision is a future revision")
        too_large = (invalid, "etcdserver: request is too large")
        refusals: list[tuple[Message, tuple[int, str]]] = [
            (pb.PutRequest(value=b"x"), (invalid, "etcdserver: key is not provided")),
            (pb.RangeRequest(), (invalid, "etcdserver: key is not provided")),
            (pb.DeleteRangeRequest(), (invalid, "etcdserver: key is not provided")),
            # Two limits: gRPC's on a message, 512 KiB above etcd's own on a request.
            (
                pb.PutRequest(key=b"k", value=bytes(2 << 20)),
                (exhausted, "grpc: received message larger than max (2097160 vs. 2097152)"),
            ),
            (pb.PutRequest(key=b"k", value=bytes((2 << 20) - 8)), too_large),
            (pb.PutRequest(key=b"k", value=bytes(1536 << 10)), too_large),
            (txn_of(200), (invalid, "etcdserver: too many operations in txn request")),
            (txn_of(2, same_key=True), (invalid, "etcdserver: duplicate key given in txn request")),
            (pb.RangeRequest(key=b"key", revision=100), future),
            (pb.RangeRequest(key=b"key", revision=2), compacted),
            (pb.CompactionRequest(revision=100), future),
            (pb.CompactionRequest(revision=3), compacted),
        ]
        for request, (code, text) in refusals:
            reply = client.call(request)
            self.assertEqual((reply.code, reply.text), (code, text), str(request)[:200])
        self.assertEqual(self.state(client), before)
        self.assertEqual(before.header.revision, 4)
        self.assertEqual(self.put(client, b"key", b"still here"), 5)
        self.assertEqual([kv.value for kv in self.state(client).kvs], [b"still here"])


class EtcdBadInputTests(BadInputTests):
    """The same of etcd 3.5.1."""

    kind = EtcdProcess
    skip = MISSING_ETCD


def flip(path: Path, position: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def txn_of(puts: int, same_key: bool = False) -> pb.TxnRequest:
    """A transaction of so many puts."""
    keys = [b"key/%d" % (0 if same_key else number) for number in range(puts)]
    return pb.TxnRequest(success=[pb.RequestOp(request_put=pb.PutRequest(key=key)) for key in keys])
