"""What a peer port refuses: ours and a real etcd 3.5.1's, asked the same over mutual TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet import reactor as trial_reactor  # noqa: TID251  the one that trial runs
from twisted.internet.defer import inlineCallbacks
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.functional.follower import Follower
from tests.functional.processes import MISSING_ETCD, free_ports
from tests.functional.test_peer_etcd import PeerEtcd
from tests.protocols.httpfakes import parse
from twistedkv.certs import Certificates, ensure_certificates
from twistedkv.members import cluster_id, member_id
from twistedkv.raft.messages import Message, MessageType
from twistedkv.raft.wire import encode_message

STRANGER = 0xBAD


def context(made: Certificates, with_certificate: bool = True) -> ssl.SSLContext:
    """A member's side of TLS."""
    found = ssl.create_default_context(cafile=str(made.ca.certificate))
    if with_certificate:
        found.load_cert_chain(made.peer.certificate, made.peer.key)
    return found


def is_whole(answer: bytes) -> bool:
    """Whether a response has ended, by its length or because it has no body."""
    head, end, body = answer.partition(b"\r\n\r\n")
    _, found, length = head.partition(b"Content-Length: ")
    return bool(end) and (not found or len(body) >= int(length.split(b"\r\n")[0]))


def ask(port: int, made: Certificates, request: bytes) -> bytes:
    """The answer on a connection of its own: until it is whole, or the port is silent or closes."""
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context(made).wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(request)
        connection.settimeout(1)
        answer = b""
        with contextlib.suppress(OSError):
            while not is_whole(answer) and (data := connection.recv(65536)):
                answer += data
        return answer


def requests(me: int, cluster: int) -> Iterator[bytes]:
    """Everything that is refused, and what is not."""
    good = {
        "X-Server-From": f"{STRANGER:x}",
        "X-Server-Version": "3.5.1",
        "X-Min-Cluster-Version": "3.0.0",
        "X-Etcd-Cluster-ID": f"{cluster:x}",
        "X-Raft-To": f"{me:x}",
    }

    def request(method: str, path: str, body: bytes = b"", **changes: str) -> bytes:
        fields = {**good, **{name.replace("_", "-"): value for name, value in changes.items()}}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
        return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body

    vote = encode_message(Message(MessageType.PRE_VOTE_RESPONSE, me, STRANGER, reject=True))
    snapshot = encode_message(Message(MessageType.HEARTBEAT, me, STRANGER))
    for path in ("/raft", "/raft/snapshot", "/raft/stream/msgapp/bad", "/raft/stream/message/bad"):
        method = "GET" if "stream" in path else "POST"
        yield request(method, path, X_Etcd_Cluster_ID="1234")
        yield request(method, path, X_Etcd_Cluster_ID="")
        yield request(method, path, X_Server_Version="")
        yield request(method, path, X_Server_Version="2.3.0")
        yield request(method, path, X_Min_Cluster_Version="3.6.0")
        yield request("PUT", path)
    for path in ("msgapp/zz", "msgapp/", "nothing/bad", "msgapp/bad", "msgapp/BAD", "msgapp/0bad", "msgapp", "a/b/c"):
        yield request("GET", f"/raft/stream/{path}")
    yield request("POST", "/raft", b"\xff\xff")
    yield request("POST", "/raft", vote)
    yield request("POST", "/raft", bytes.fromhex("080b"))
    yield request("POST", "/raft/snapshot")
    yield request("POST", "/raft/snapshot", b"\x00\x00")
    yield request("POST", "/raft/snapshot", struct.pack(">Q", 2) + b"\xff\xff")
    yield request("POST", "/raft/snapshot", struct.pack(">Q", len(snapshot)) + snapshot)
    yield request("GET", "/nothing")
    yield request("POST", "/members")
    yield request("POST", "/version")


class RefusalTests(TestCase):
    skip = MISSING_ETCD
    timeout = 120

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.made = ensure_certificates(Path(directory.name) / "pki")
        self.server = PeerEtcd(Path(directory.name) / "etcd", self.made)
        self.addCleanup(self.server.stop)
        self.server.start()
        self.me = member_id([self.server.peer_url], "etcd-cluster")
        self.cluster = cluster_id([self.me])
        (self.port,) = free_ports(1)
        url = f"https://127.0.0.1:{self.port}"
        self.ours = Follower(trial_reactor, self.me, self.cluster, url, Path(directory.name), self.made)
        self.addCleanup(self.ours.stop)
        self.ours.start()

    @inlineCallbacks
    def test_answers_are_equal_but_for_the_date(self) -> Any:
        """Status, headers and body of every refusal are etcd's."""
        different = []
        for request in requests(self.me, self.cluster):
            answers = []
            for port in (self.server.peer_port, self.port):
                data = yield deferToThread(ask, port, self.made, request)
                if not data:
                    answers.append("closed")
                    continue
                status, fields, body = parse(data)
                fields.pop("date", None)
                answers.append((status, fields, body))
            if answers[0] != answers[1]:
                different.append((request[: request.find(b"\r\n")], request[-40:], *answers))
        self.assertEqual(different, [], "\n".join(map(str, different)))

    @inlineCallbacks
    def test_who_has_no_certificate_is_not_heard(self) -> Any:
        """Neither answers a peer without a certificate of the cluster's authority."""

        def attempt(port: int) -> str:
            with socket.create_connection(("127.0.0.1", port), 10) as plain:
                try:
                    with context(self.made, False).wrap_socket(plain, server_hostname="127.0.0.1") as connection:
                        connection.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
                        return repr(connection.recv(100))
                except (ssl.SSLError, ConnectionError) as error:
                    return type(error).__mro__[-4].__name__

        theirs = yield deferToThread(attempt, self.server.peer_port)
        ours = yield deferToThread(attempt, self.port)
        self.assertEqual((ours, theirs), ("OSError", "OSError"))
