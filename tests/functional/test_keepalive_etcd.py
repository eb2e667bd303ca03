"""Keepalive on real sockets: twistedkv's frames against those of real etcd, for the same pings and the same silence."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hpack import Encoder
from twisted.trial.unittest import SynchronousTestCase

from tests.functional.processes import MISSING_ETCD, EtcdProcess, ServerProcess, TLSFiles, TwistedkvProcess
from twistedkv.protocols import frames
from twistedkv.protocols.frames import HEAD, HEAD_BYTES

_OPTIONS = ("--grpc-keepalive-interval", "1s", "--grpc-keepalive-timeout", "1s")
_TIMEOUT_S = 10.0
_PING = frames.ping(b"12345678")
_ACK = (frames.PING, frames.ACK, b"12345678")


class RawClient:
    """A client that sends what the test says, and neither answers nor acknowledges anything by itself."""

    def __init__(self, server: ServerProcess) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), _TIMEOUT_S)
        if server.tls is not None:
            self._socket = server.tls.client_context("h2").wrap_socket(self._socket, server_hostname="localhost")
        self._received = b""
        self.send(frames.PREFACE + frames.settings([]))

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def open(self) -> None:
        """Open a stream that stays open: a request whose message does not come."""
        fields = {":method": "POST", ":scheme": "http", ":path": "/etcdserverpb.KV/Range", ":authority": "localhost"}
        block = Encoder().encode([*fields.items(), ("content-type", "application/grpc"), ("te", "trailers")])
        self.send(frames.headers_frames(1, block, 0, frames.DEFAULT_FRAME_BYTES))

    def frames(self) -> Iterator[tuple[int, int, bytes]]:
        """Type, flags and payload of the PING and GOAWAY frames that come, until the server closes."""
        while True:
            while len(self._received) < HEAD_BYTES or len(self._received) < HEAD_BYTES + self._length():
                try:
                    data = self._socket.recv(65536)
                except ConnectionResetError:
                    return
                if not data:
                    return
                self._received += data
            word, flags, _ = HEAD.unpack_from(self._received)
            end = HEAD_BYTES + (word >> 8)
            payload, self._received = self._received[HEAD_BYTES:end], self._received[end:]
            if word & 0xFF in (frames.PING, frames.GOAWAY):
                yield word & 0xFF, flags, payload

    def _length(self) -> int:
        return int.from_bytes(self._received[:3], "big")

    def close(self) -> None:
        self._socket.close()


class KeepaliveTests(SynchronousTestCase):
    """Each against both servers."""

    skip = MISSING_ETCD

    def servers(self, tls: bool, options: tuple[str, ...] = ()) -> list[ServerProcess]:
        """Both servers, started; they stop when the test ends."""
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        files = TLSFiles.make(Path(scratch.name) / "tls") if tls else None
        servers = [each(Path(scratch.name) / each.__name__, files, options) for each in (EtcdProcess, TwistedkvProcess)]
        for server in servers:
            self.addCleanup(server.stop)
            server.spawn()
        for server in servers:
            server.wait_until_ready()
        return servers

    def connect(self, server: ServerProcess) -> RawClient:
        client = RawClient(server)
        self.addCleanup(client.close)
        return client

    def test_too_many_pings(self) -> None:
        """Both answer four quick pings, with a stream and without, then say too_many_pings and close."""
        for server in self.servers(tls=False):
            for last_id in (0, 1):
                client = self.connect(server)
                if last_id:
                    client.open()
                client.send(_PING * 4)
                goaway = frames.goaway(last_id, frames.ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings")
                expected = [_ACK] * 4 + [(frames.GOAWAY, 0, goaway[HEAD_BYTES:])]
                self.assertEqual(list(client.frames()), expected, (server.label, last_id))

    def test_pings_over_tls_are_not_counted(self) -> None:
        """Over TLS both answer any number of pings."""
        for server in self.servers(tls=True):
            client = self.connect(server)
            client.send(_PING * 20)
            received = client.frames()
            self.assertEqual([next(received) for _ in range(20)], [_ACK] * 20, server.label)

    def test_silent_client_is_cut_off(self) -> None:
        """Both ping a client that says nothing, and close without a word when it does not answer."""
        for server in self.servers(tls=False, options=_OPTIONS):
            client = self.connect(server)
            self.assertEqual(list(client.frames()), [(frames.PING, 0, bytes(8))], server.label)
