"""Bad input on the peer ports of running members: each is refused, told in one line of the log, and changes nothing.

Two of three members run. The test plays the third, which has never started: it has a certificate of the cluster's,
dials the others by its id, and answers where they dial it. What a bare transport refuses, answer by answer beside
etcd's, is in ``test_peer_refusals``.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c
from twisted.trial.unittest import SynchronousTestCase

from tests.functional.cluster import ClusterOfProcesses, start_together, until
from tests.functional.processes import MISSING_ETCD, ServerProcess, TLSFiles, TwistedkvProcess
from tests.functional.test_peer_refusals import is_whole
from twistedkv.optiontypes import parse_url
from twistedkv.protocols.msgappv2 import StreamKind
from twistedkv.protocols.peerheads import CRC_FIELD, Identity
from twistedkv.protocols.peerhttp import LAST_CHUNK, chunk
from twistedkv.raft.messages import ConfState, Message, MessageType, Snapshot, SnapshotMeta
from twistedkv.raft.wire import encode_message

QUICK = ("--heartbeat-interval", "50", "--election-timeout", "500")
MOST_GROWTH_BYTES = 160 << 20  # of a member's memory; one request may have 64 MiB (etcd has no bound)
_TIMEOUT_S = 10.0
_VERSION = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
_HUGE = struct.pack(">Q", 1 << 62)
_GARBAGE = b"garbage " * 4096


class Attempt(NamedTuple):
    """One connection to a peer port."""

    what: str
    data: bytes
    answer: str  # what begins the answer: status and the first words of the body; empty if the port just closes
    logged: str  # a pattern of the one line


class Reading(NamedTuple):
    """What somebody who is dialled for a stream sends after the head of the response."""

    kind: StreamKind
    body: bytes
    logged: str


class ClusterRefusalTests(SynchronousTestCase):
    skip = MISSING_ETCD

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.directory = Path(scratch.name)
        self.cluster = cluster = ClusterOfProcesses(self.directory / "cluster", [TwistedkvProcess] * 3, QUICK)
        self.addCleanup(cluster.kill_all)
        first, second, self.played = cluster.members
        self.running = [first, second]
        start_together(self.running)
        self.victim = second if cluster.leader() is first else first  # a follower, whom a snapshot could concern
        self.leader = cluster.leader()
        for number in range(20):
            cluster.ctl("put", f"k{number}", "v" * 100, members=[first])
        listed = cluster.ctl_json("member", "list", members=[first])
        by_url = {each["peerURLs"][0]: each["ID"] for each in listed["members"]}
        self.ids = {each: by_url[each.peer_url] for each in cluster.members}
        self.me = Identity(self.ids[self.played], listed["header"]["cluster_id"], "3.5.1", (self.played.peer_url,))
        self.url = parse_url(self.victim.peer_url)
        status = cluster.status(self.victim)
        self.index, self.term = status["raftIndex"], status["raftTerm"]
        assert cluster.tls is not None
        self.good = context(cluster.tls, cluster.tls)

    def test_bad_input_changes_nothing(self) -> None:
        """All of it in a row, while the cluster serves on; then the played member is removed, and is heard no more."""
        before = self.state()
        memory = {each: each.rss_bytes() for each in self.running}
        self.refuse_certificates()
        for attempt in (*self.requests(), *self.snapshots()):
            self.refuse(attempt, self.good)
        self.refuse_endless_message()
        self.answer_dials()
        self.assertEqual(self.state(), before)
        for each in self.running:
            self.assertLess(each.rss_bytes() - memory[each], MOST_GROWTH_BYTES)
            self.assertEqual(list((each.directory / "data").glob("incoming/*")), [])

        identity = f"{self.me.member_id:x}"
        self.cluster.ctl("member", "remove", identity, members=self.running)
        until("the victim knows", lambda: identity not in self.cluster.ctl("member", "list", members=[self.victim]))
        for attempt in self.of_removed_member():
            self.refuse(attempt, self.good)
        for each in self.running:
            self.cluster.ctl("put", "after", each.name, members=[each])
            self.assertNotIn("Traceback", each.log_since())
        self.cluster.wait_until_equal(self.running)

    # --- what is tried -----------------------------------------------------------------------------

    def refuse_certificates(self) -> None:
        """None, one of another authority, and no TLS at all."""
        tls = self.cluster.tls
        assert tls is not None
        other = TLSFiles.make(self.directory / "other")
        self.refuse(Attempt("no certificate", _VERSION, "", "refused .*: .*did not return a certificate"), context(tls))
        self.refuse(
            Attempt("another authority's", _VERSION, "", "refused .*certificate verify failed"), context(tls, other)
        )
        self.refuse(Attempt("no TLS", _GARBAGE, "", r"refused .*: \[SSL"), None)

    def requests(self) -> Sequence[Attempt]:
        """No HTTP, and messages and streams that are none, or not for this member."""
        me, url, other = self.me, self.url, self.leader
        stranger = Identity(me.member_id, me.cluster_id + 1, me.version, me.urls)
        old = Identity(me.member_id, me.cluster_id, "2.3.0", me.urls)
        response = self.message(MessageType.HEARTBEAT_RESPONSE)
        to_other = encode_message(Message(MessageType.HEARTBEAT_RESPONSE, self.ids[other], me.member_id))
        mismatch = '403 {"message":"cannot process message to mismatch member"}'
        refused = "refused .*message from .*: cannot process message to mismatch member"
        return [
            Attempt("no HTTP", b"\x16\x03garbage\r\n\r\n", "400 ", ": 400 Bad Request"),
            Attempt("an endless head", b"GET / HTTP/1.1\r\nX: " + bytes(100_000), "431 ", ": 431 "),
            Attempt("another cluster", stranger.post_request(response, url), "412 cluster ID", "refused .*ID mismatch"),
            Attempt("too old", old.post_request(response, url), "412 incompatible", "refused .*incompatible version"),
            Attempt("garbage", me.post_request(_GARBAGE, url), "400 error unmarshalling", "posted no message: "),
            Attempt(
                "no known type", me.post_request(b"\x08\x7f" + response[2:], url), "204 ", "posted a message of type"
            ),
            Attempt("to another member", me.post_request(to_other, url), mismatch, refused),
            Attempt(
                "a stream from another member",
                me.stream_request(StreamKind.MESSAGES, self.ids[other], url),
                "412 to field mismatch",
                f"refused {me.member_id:x} a stream: it takes us for {self.ids[other]:x}",
            ),
        ]

    def snapshots(self) -> Sequence[Attempt]:
        """Of no use in every way that there is, from the whole database of the leader down to nothing."""
        saved = self.directory / "saved"
        self.cluster.ctl("snapshot", "save", str(saved), members=[self.leader])
        database = saved.read_bytes()[:-32]  # a checksum of etcdctl's is at the end
        other = database[:4096] + bytes(4096) + database[8192:]
        half = database[: len(database) // 2]
        save, lost = "500 failed to save KV snapshot", "cannot save a snapshot: "
        decode = "400 failed to decode raft message"
        head = self.me.snapshot_request(self.url, 0)
        heartbeat = self.message(MessageType.HEARTBEAT)
        return [
            Attempt(
                "of another index", self.snapshot(database, crc(database)), save, f"{lost}the database is at index"
            ),
            Attempt(
                "a wrong checksum", self.snapshot(database, crc(other)), save, f"{lost}the database has the checksum"
            ),
            Attempt("half of it", self.snapshot(half, crc(database)), save, f"{lost}the database has the checksum"),
            Attempt("half, as etcd sends it", self.snapshot(half, None), save, f"{lost}.*damaged"),
            Attempt("garbage", self.snapshot(_GARBAGE, crc(_GARBAGE)), save, f"{lost}the database is damaged"),
            Attempt("nothing", self.snapshot(b"", None), save, f"{lost}the database is damaged"),
            Attempt("cut off", self.snapshot(half, None)[: -len(LAST_CHUNK)], "", "the snapshot from .* was cut off"),
            Attempt("a huge message", head + chunk(_HUGE + _GARBAGE), decode, "sent no snapshot: failed to decode"),
            Attempt(
                "half a message", head + chunk(_HUGE[:5]) + LAST_CHUNK, decode, "sent no snapshot: failed to decode"
            ),
            Attempt(
                "a heartbeat",
                head + chunk(struct.pack(">Q", len(heartbeat)) + heartbeat) + LAST_CHUNK,
                "400 wrong raft message type",
                "sent no snapshot: wrong raft message type",
            ),
        ]

    def of_removed_member(self) -> Sequence[Attempt]:
        """By somebody who was a member."""
        me, url = self.me, self.url
        post = me.post_request(self.message(MessageType.HEARTBEAT_RESPONSE), url)
        stream = me.stream_request(StreamKind.MESSAGES, self.ids[self.victim], url)
        text = "cannot process message from removed member"
        refusal = f'403 {{"message":"{text}"}}'
        return [
            Attempt("a message", post, refusal, f"refused .*message from {me.member_id:x} .*: {text}"),
            Attempt("a stream", stream, "410 removed member", f"refused {me.member_id:x} a stream: it is a removed"),
            Attempt("a snapshot", self.snapshot(_GARBAGE, None), refusal, f"refused .*message from .*: {text}"),
        ]

    def refuse_endless_message(self) -> None:
        """A message of 100 GB is not kept, nor waited for."""
        announced = self.me.post_request(b"", self.url).replace(b"Content-Length: 0", b"Content-Length: 100000000000")
        part = bytes(1 << 20)
        with self.connected(self.good) as connection:
            connection.sendall(announced)
            with contextlib.suppress(OSError):
                for _ in range(128):
                    connection.sendall(part)
                self.fail("all of it was taken")

    def answer_dials(self) -> None:
        """Where the others dial the played member, they read from their streams what no member sends."""
        other = encode_message(
            Message(MessageType.HEARTBEAT, self.ids[self.victim], self.ids[self.leader], term=self.term)
        )
        snapshot = self.message(MessageType.SNAPSHOT)
        misled = encode_message(Message(MessageType.HEARTBEAT_RESPONSE, 0xBAD, self.me.member_id))

        def framed(message: bytes) -> bytes:
            return chunk(struct.pack(">Q", len(message)) + message)

        readings = [
            Reading(StreamKind.MESSAGES, b"garbage\r\n", "a chunk without a size"),
            Reading(StreamKind.MESSAGES, chunk(_HUGE + _GARBAGE), f"a message of {1 << 62} bytes"),
            Reading(StreamKind.MESSAGES, framed(b"\xff\xff\xff"), "[Ee]rror parsing message"),
            Reading(StreamKind.MESSAGES, framed(other), "HEARTBEAT from [0-9a-f]+ on the stream of"),
            Reading(StreamKind.MESSAGES, framed(misled) + framed(snapshot), "SNAPSHOT from [0-9a-f]+ on the stream of"),
            Reading(StreamKind.APPENDS, chunk(b"\x09" + _GARBAGE), "a frame of type 9 on the append stream"),
            Reading(StreamKind.APPENDS, chunk(b"\x01" + _HUGE), f"an append of {1 << 62} entries"),
            Reading(StreamKind.APPENDS, chunk(b"\x02" + _HUGE), f"a message of {1 << 62} bytes"),
            Reading(StreamKind.APPENDS, chunk(b"\x01" + struct.pack(">QQ", 1, 1 << 62)), "an append of more than"),
            Reading(StreamKind.APPENDS, chunk(b"\x02" + framed(other)[4:-2]), "no append on the append stream"),
            Reading(StreamKind.APPENDS, chunk(b"\x00") + b"garbage\r\n", "a chunk without a size"),
        ]
        logged = self.victim.log_bytes
        played = PlayedMember(self.played, self.good_server(), self.me, self.ids[self.victim], readings)
        try:
            until("the victim has read everything", lambda: not played.left)
            for reading in readings:
                pattern = re.compile(rf"no {reading.kind.value} stream from {self.me.member_id:x}: .*{reading.logged}")
                until(reading.logged, lambda pattern=pattern: pattern.search(self.victim.log_since(logged)) is not None)
            self.assertIn(f"{self.me.member_id:x} sent us a message for bad", self.victim.log_since(logged))
        finally:
            played.close()

    # --- how it is tried ---------------------------------------------------------------------------

    def refuse(self, attempt: Attempt, tls: ssl.SSLContext | None) -> None:
        """Try it, and see what is answered and logged."""
        logged = self.victim.log_bytes
        with self.connected(tls) as connection:
            answer = exchange(connection, attempt.data) if connection is not None else b""
        self.assertEqual(summary(answer)[: len(attempt.answer)], attempt.answer, f"{attempt.what}: {answer!r}")
        if not attempt.answer:
            self.assertEqual(answer, b"", attempt.what)
        pattern = re.compile(attempt.logged)
        until(f"{attempt.what} is logged", lambda: pattern.search(self.victim.log_since(logged)) is not None)
        lines = [line for line in self.victim.log_since(logged).splitlines() if pattern.search(line)]
        self.assertEqual(len(lines), 1, f"{attempt.what}: {lines}")

    @contextlib.contextmanager
    def connected(self, tls: ssl.SSLContext | None):  # type: ignore[no-untyped-def]
        """A connection to the victim's peer port, None if the handshake fails; 1.3's tells a client only afterwards."""
        plain = socket.create_connection(("127.0.0.1", self.victim.peer_port), _TIMEOUT_S)
        with plain:
            if tls is None:
                yield plain
                return
            try:
                connection = tls.wrap_socket(plain, server_hostname="127.0.0.1")
            except OSError:
                yield None
                return
            with connection:
                yield connection

    def message(self, kind: MessageType) -> bytes:
        """From the played member to the victim, of the current term."""
        return encode_message(Message(kind, self.ids[self.victim], self.me.member_id, term=self.term))

    def snapshot(self, database: bytes, checksum: int | None) -> bytes:
        """A whole delivery of one that would be new to the victim."""
        state = ConfState(tuple(sorted(self.ids.values())))
        message = Message(MessageType.SNAPSHOT, self.ids[self.victim], self.me.member_id, term=self.term)
        message.snapshot = Snapshot(SnapshotMeta(self.index + 1000, self.term, state), b"")
        encoded = encode_message(message)
        head = self.me.snapshot_request(self.url, checksum or 0)
        if checksum is None:
            head = re.sub(rb"%b: [0-9a-f]+\r\n" % CRC_FIELD.encode(), b"", head)
        body = chunk(database) if database else b""
        return head + chunk(struct.pack(">Q", len(encoded)) + encoded) + body + LAST_CHUNK

    def good_server(self) -> ssl.SSLContext:
        """The played member's side of TLS where it is dialled."""
        tls = self.cluster.tls
        assert tls is not None
        made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tls.ca))
        made.load_cert_chain(tls.server_cert, tls.server_key)
        return made

    def state(self) -> Sequence[object]:
        """What must stay as it is."""
        found = self.cluster.ctl_json("endpoint", "hashkv", members=self.running)
        status = self.cluster.status(self.victim)
        told = [(each["HashKV"]["header"]["revision"], each["HashKV"]["hash"]) for each in found]
        return [*told, status["raftTerm"], status["leader"], status["raftIndex"]]


class PlayedMember:
    """Listens where a member would, and gives one after the other of ``readings`` to ``reader``, who dials for streams.

    Everybody else, and everything else, is hung up on.
    """

    def __init__(
        self, member: ServerProcess, tls: ssl.SSLContext, me: Identity, reader: int, readings: Sequence[Reading]
    ) -> None:
        self.left = list(readings)
        self._tls = tls
        self._head = (
            "HTTP/1.1 200 OK\r\nX-Server-Version: 3.5.1\r\nTransfer-Encoding: chunked\r\n"
            f"X-Etcd-Cluster-Id: {me.cluster_id:x}\r\n\r\n"
        ).encode()
        self._reader = f"X-Server-From: {reader:x}\r\n".encode()
        self._listener = socket.create_server(("127.0.0.1", member.peer_port))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(_TIMEOUT_S)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), plain:
                plain.settimeout(_TIMEOUT_S)
                with self._tls.wrap_socket(plain, server_side=True) as connection:
                    self._answer(connection)

    def _answer(self, connection: ssl.SSLSocket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = connection.recv(65536)
            if not data:
                return
            head += data
        for reading in self.left:
            if self._reader in head and b"GET /raft/stream/%b/" % reading.kind.value.encode() in head:
                connection.sendall(self._head + reading.body)
                while connection.recv(65536):  # until the reader has had enough
                    pass
                self.left.remove(reading)
                return


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """One answer; less if the port closes before, or is silent for a moment."""
    answer = b""
    try:
        connection.sendall(data)
        connection.settimeout(0.5)
        while not is_whole(answer) and (piece := connection.recv(65536)):
            answer += piece
    except OSError:
        pass  # a time-out, or the port has closed without reading all of it
    return answer


def summary(answer: bytes) -> str:
    """The status of an HTTP answer, and its body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return f"{words[1].decode()} {body.decode()}" if len(words) == 3 else ""


def context(authority: TLSFiles, own: TLSFiles | None = None) -> ssl.SSLContext:
    """A dialling member's side of TLS, with the certificate of ``own`` or none."""
    made = ssl.create_default_context(cafile=str(authority.ca))
    if own is not None:
        made.load_cert_chain(own.server_cert, own.server_key)
    return made


def crc(data: bytes) -> int:
    """As a snapshot is sent with it."""
    return int(google_crc32c.value(data))
