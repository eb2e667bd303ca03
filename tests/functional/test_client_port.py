"""The client port on real sockets: grpcio, http.client, OpenSSL and our own client as peers, with mutual TLS."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from twisted.internet import reactor as trial_reactor  # noqa: TID251  the one that trial runs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IProtocol
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.http import HTTPChannel, Request

from twistedkv.certs import Certificates, Pair, ensure_certificates
from twistedkv.pb import rpc_pb2
from twistedkv.protocols.client import GrpcClient, connect
from twistedkv.protocols.grpc import GrpcServerConnection
from twistedkv.protocols.limits import Limits
from twistedkv.protocols.rpc import Access, Call, Kind, Method, MethodTable, Peer
from twistedkv.protocols.server import ClientPort
from twistedkv.protocols.tls import ClientContext, ServerContext, TLSConfig
from twistedkv.protocols.turn import Turn

reactor: Any = trial_reactor
TIMEOUT_S = 20.0
BIG = bytes(range(256)) * 4096  # 1 MiB


class Hello(Request):
    def process(self) -> None:
        self.write(b"secure" if self.isSecure() else b"plain")
        self.finish()


class ToyServer:
    """Methods of all four kinds behind a client port."""

    def __init__(self, context: ServerContext | None) -> None:
        self.peers: list[Peer] = []
        self.held: list[Call] = []
        self.on_held: Deferred[None] = Deferred()
        self.port = ClientPort(reactor, self._grpc, self._http1, Turn(reactor))
        self.number: int = self.port.listen("127.0.0.1", 0, context).getHost().port
        self._table = MethodTable(
            Method(f"/test.Toy/{name}", kind, rpc_pb2.PutRequest, rpc_pb2.PutRequest, Access.OPEN, handler)
            for name, kind, handler in (
                ("Echo", Kind.UNARY, self.echo),
                ("Hold", Kind.UNARY, self.hold),
                ("Count", Kind.SERVER_STREAM, self.count),
                ("Sum", Kind.CLIENT_STREAM, self.sum),
                ("Chat", Kind.BIDI, self.chat),
                ("Flood", Kind.SERVER_STREAM, self.flood),
                ("Probe", Kind.BIDI, self.hold),
            )
        )

    def _grpc(self, peer: Peer) -> GrpcServerConnection:
        return GrpcServerConnection(self._table, peer, Limits(), 4 << 20, self._failed)

    def _failed(self, error: BaseException, path: str) -> None:
        raise AssertionError(path) from error

    def _http1(self, peer: Peer) -> IProtocol:
        channel = HTTPChannel()
        channel.requestFactory = Hello
        return channel

    def echo(self, call: Call) -> None:
        self.peers.append(call.peer)
        call.reply(call.message)

    def hold(self, call: Call) -> None:
        call.on_message = lambda message: None
        self.held.append(call)
        self.on_held.callback(None)

    def count(self, call: Call) -> None:
        for number in range(int(call.message)):
            call.send(b"%d" % number)
        call.finish()

    def sum(self, call: Call) -> None:
        numbers: list[int] = []
        call.on_message = lambda message: numbers.append(int(message))
        call.on_half_close = lambda: call.reply(b"%d" % sum(numbers))

    def chat(self, call: Call) -> None:
        call.on_message = lambda message: call.send(message.upper())
        call.on_half_close = call.finish

    def flood(self, call: Call) -> None:
        call.send(BIG)
        call.finish()


class ClientPortCase(TestCase):
    timeout = 60
    made: Certificates

    def setUp(self) -> None:
        self.made = ensure_certificates(self.mktemp())
        self.clock = Clock()  # of the certificates' reload only
        pair = self.made.server
        config = TLSConfig(str(pair.certificate), str(pair.key), str(self.made.ca.certificate))
        self.server = ToyServer(ServerContext(config, self.clock))
        self.addCleanup(self.server.port.stop, 0.5)

    def in_grpcio(self, work: Callable[[grpc.Channel], Any], pair: Pair | None) -> Deferred[Any]:
        """The result of ``work`` with a channel of grpcio, in a thread of its own."""
        credentials = grpc.ssl_channel_credentials(
            self.made.ca.certificate.read_bytes(),
            pair.key.read_bytes() if pair else None,
            pair.certificate.read_bytes() if pair else None,
        )

        def run() -> Any:
            with grpc.secure_channel(f"localhost:{self.server.number}", credentials) as channel:
                return work(channel)

        return deferToThread(run)

    def in_socket(self, work: Callable[[ssl.SSLSocket], Any], context: ssl.SSLContext) -> Deferred[Any]:
        """The result of ``work`` with a TLS connection of OpenSSL's, in a thread of its own."""

        def run() -> Any:
            with (
                socket.create_connection(("127.0.0.1", self.server.number), TIMEOUT_S) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as secure,
            ):
                return work(secure)

        return deferToThread(run)

    def openssl(self, pair: Pair | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.made.ca.certificate))
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        return context

    def our_client(self) -> Deferred[GrpcClient]:
        pair = self.made.client
        config = TLSConfig(str(pair.certificate), str(pair.key), str(self.made.ca.certificate))
        return connect(reactor, "localhost", self.server.number, ClientContext(config, self.clock))


def echo(channel: grpc.Channel) -> bytes:
    reply: bytes = channel.unary_unary("/test.Toy/Echo")(b"hello", timeout=TIMEOUT_S)
    return reply


def refusal(channel: grpc.Channel) -> grpc.StatusCode:
    try:
        channel.unary_unary("/test.Toy/Echo")(b"", timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    raise AssertionError("the call was served")


class GrpcioTests(ClientPortCase):
    async def test_all_four_kinds(self) -> None:
        """grpcio makes calls of every kind over mutual TLS, and the server knows it by its certificate."""

        def work(channel: grpc.Channel) -> tuple[Any, ...]:
            chat = channel.stream_stream("/test.Toy/Chat")(iter([b"a", b"b"]), timeout=TIMEOUT_S)
            return (
                echo(channel),
                list(channel.unary_stream("/test.Toy/Count")(b"100", timeout=TIMEOUT_S)),
                channel.stream_unary("/test.Toy/Sum")((b"%d" % n for n in range(100)), timeout=TIMEOUT_S),
                list(chat),
            )

        echoed, counted, added, chatted = await self.in_grpcio(work, self.made.client)
        self.assertEqual((echoed, added, chatted), (b"hello", b"4950", [b"A", b"B"]))
        self.assertEqual(counted, [b"%d" % n for n in range(100)])
        self.assertEqual(self.server.peers[0].common_name, "twistedkv-client")

    async def test_megabytes_both_ways(self) -> None:
        """Messages larger than any window or buffer on the way arrive whole."""

        def work(channel: grpc.Channel) -> bool:
            echo = channel.unary_unary("/test.Toy/Echo")
            return all(echo(BIG, timeout=TIMEOUT_S) == BIG for _ in range(5))

        self.assertTrue(await self.in_grpcio(work, self.made.client))

    async def test_client_without_certificate_is_refused(self) -> None:
        """Without a certificate no call gets through."""
        code = await self.in_grpcio(refusal, None)
        self.assertEqual((code, self.server.peers), (grpc.StatusCode.UNAVAILABLE, []))

    async def test_client_of_another_ca_is_refused(self) -> None:
        """With a certificate of another CA no call gets through."""
        other = ensure_certificates(self.mktemp())
        code = await self.in_grpcio(refusal, other.client)
        self.assertEqual((code, self.server.peers), (grpc.StatusCode.UNAVAILABLE, []))

    async def test_rotation(self) -> None:
        """New certificate files count for the next connection; one that is open goes on with the old ones."""
        client = await self.our_client()
        other = ensure_certificates(self.mktemp())
        for name in ("server.crt", "server.key", "ca.crt"):
            Path(other.ca.certificate.parent, name).replace(Path(self.made.ca.certificate.parent, name))
        self.clock.advance(1)
        self.assertEqual(await self.in_grpcio(echo, other.client), b"hello")
        self.assertEqual(await self.in_grpcio(refusal, self.made.client), grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(await client.unary("/test.Toy/Echo", b"still here"), b"still here")
        await client.close()

    async def test_graceful_stop(self) -> None:
        """A call in progress when the server stops gets its answer; a later one is refused."""

        def work(channel: grpc.Channel) -> Any:
            return channel.unary_unary("/test.Toy/Hold")(b"", timeout=TIMEOUT_S)

        call = self.in_grpcio(work, self.made.client)
        await self.server.on_held
        stopped = self.server.port.stop(TIMEOUT_S)
        await deferLater(reactor, 0, lambda: None)
        self.server.held[0].reply(b"the last answer")
        self.assertEqual(await call, b"the last answer")
        await stopped
        code = await self.in_grpcio(refusal, self.made.client)
        self.assertEqual(code, grpc.StatusCode.UNAVAILABLE)


class SocketTests(ClientPortCase):
    async def test_http1(self) -> None:
        """An HTTP/1.1 client is served on the same port, several requests on one connection."""
        context = self.openssl(self.made.client)

        def work() -> list[bytes]:
            connection = http.client.HTTPSConnection("localhost", self.server.number, context=context, timeout=20)
            answers = []
            for _ in range(3):
                connection.request("GET", "/health")
                answers.append(connection.getresponse().read())
            connection.close()
            return answers

        self.assertEqual(await deferToThread(work), [b"secure"] * 3)

    async def test_alpn(self) -> None:
        """HTTP/1.1 is chosen for whoever offers it, HTTP/2 for whoever offers only that."""
        chosen = []
        for offer in (["h2", "http/1.1"], ["h2"]):
            context = self.openssl(self.made.client)
            context.set_alpn_protocols(offer)
            chosen.append(await self.in_socket(lambda secure: secure.selected_alpn_protocol(), context))
        self.assertEqual(chosen, ["http/1.1", "h2"])

    async def test_garbage_is_closed(self) -> None:
        """Bytes that are no protocol of ours end the connection, and the server goes on."""

        def work(secure: ssl.SSLSocket) -> bytes:
            secure.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            return secure.recv(100)

        self.assertEqual(await self.in_socket(work, self.openssl(self.made.client)), b"")
        self.assertEqual(await self.in_grpcio(echo, self.made.client), b"hello")

    async def test_plaintext_on_a_tls_port_is_closed(self) -> None:
        """A client that does not speak TLS is turned away."""

        def work() -> bytes:
            with socket.create_connection(("127.0.0.1", self.server.number), TIMEOUT_S) as plain:
                plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                return b"".join(iter(lambda: plain.recv(4096), b""))

        self.assertNotIn(b"HTTP", await deferToThread(work))

    async def test_old_tls_is_refused(self) -> None:
        """A client that speaks TLS 1.1 at most is told that its version is too old."""
        context = self.openssl(self.made.client)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        error = await self.assertFailure(self.in_socket(lambda secure: None, context), ssl.SSLError)
        self.assertIn("ALERT_PROTOCOL_VERSION", str(error))

    async def test_refusal_says_why(self) -> None:
        """A client without a certificate reads the alert that says so."""
        reading = self.in_socket(lambda secure: secure.recv(1), self.openssl(None))
        error = await self.assertFailure(reading, ssl.SSLError)
        self.assertIn("CERTIFICATE_REQUIRED", str(error))


class OurClientTests(ClientPortCase):
    async def test_many_calls_at_once(self) -> None:
        """Our own client has a thousand calls answered over one connection."""
        client = await self.our_client()
        messages = [b"%d" % number for number in range(1000)]
        replies = await gatherResults([client.unary("/test.Toy/Echo", message) for message in messages])
        self.assertEqual(replies, messages)
        await client.close()

    async def test_client_that_does_not_read(self) -> None:
        """While a client does not read, the server's streams learn that they should wait; nothing gets lost."""
        client = await self.our_client()
        streams = 14  # below the connection's window, above what the sockets buffer
        received: list[int] = []
        ends: list[Deferred[int]] = []
        client.transport.pauseProducing()
        for _ in range(streams):
            ended: Deferred[int] = Deferred()
            ends.append(ended)
            stream = client.open_stream(
                "/test.Toy/Flood",
                lambda message: received.append(len(message)),
                lambda code, text, ended=ended: ended.callback(code),  # type: ignore[misc]
            )
            stream.send(b"go")
            stream.half_close()
        client.open_stream("/test.Toy/Probe", received.append, lambda code, text: None)  # type: ignore[arg-type]
        await self.server.on_held
        await deferLater(reactor, 0, lambda: None)  # the server has sent what the socket takes
        probe = self.server.held[0]
        self.assertFalse(probe.writable)
        room: Deferred[None] = Deferred()
        probe.on_writable = lambda: room.callback(None)
        client.transport.resumeProducing()
        self.assertEqual(await gatherResults(ends), [0] * streams)
        self.assertEqual(received, [len(BIG)] * streams)
        await room
        self.assertTrue(probe.writable)
        await client.close()
