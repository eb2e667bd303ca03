"""The gRPC client over a network in memory, against the client port with the real codec at the other end."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import FakeSocket, Recorder, Wire
from twistedkv.certs import ensure_certificates
from twistedkv.errors import Code, EmptyKeyError, RPCError
from twistedkv.pb import rpc_pb2
from twistedkv.protocols.client import CALL_TIMEOUT_S, GrpcClient, connect
from twistedkv.protocols.grpc import GrpcServerConnection
from twistedkv.protocols.limits import Limits
from twistedkv.protocols.rpc import Access, Call, Kind, Method, MethodTable, Peer
from twistedkv.protocols.server import ClientPort
from twistedkv.protocols.tls import ClientContext, ServerContext, TLSConfig
from twistedkv.protocols.turn import Turn

ECHO, WAIT, FAIL, CHAT = "/test.Toy/Echo", "/test.Toy/Wait", "/test.Toy/Fail", "/test.Toy/Chat"


class ClientTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.waiting: list[Call] = []
        table = MethodTable(
            Method(path, kind, rpc_pb2.PutRequest, rpc_pb2.PutRequest, Access.OPEN, handler)
            for path, kind, handler in (
                (ECHO, Kind.UNARY, lambda call: call.reply(call.message)),
                (WAIT, Kind.UNARY, self.waiting.append),
                (FAIL, Kind.UNARY, lambda call: call.fail(EmptyKeyError())),
                (CHAT, Kind.BIDI, self.chat),
            )
        )

        def make_grpc(peer: Peer) -> GrpcServerConnection:
            return GrpcServerConnection(table, peer, Limits(), 1 << 20, self.failed)

        self.port = ClientPort(self.reactor, make_grpc, lambda peer: Recorder(), Turn(self.reactor))

    def failed(self, error: BaseException, path: str) -> None:
        raise AssertionError(path) from error

    def chat(self, call: Call) -> None:
        call.on_message = lambda message: call.send(message.upper())
        call.on_half_close = call.finish

    def connected(self, context: ClientContext | None = None, server: ServerContext | None = None) -> tuple[Any, Wire]:
        client = connect(self.reactor, "127.0.0.1", 2379, context)
        host, port, factory, _, _ = self.reactor.tcpClients[-1]
        self.assertEqual((host, port), ("127.0.0.1", 2379))
        wire = Wire(self.reactor, factory.buildProtocol(None), self.port.build(server))
        wire.pump()
        return client, wire

    def plain(self) -> tuple[GrpcClient, Wire]:
        client, wire = self.connected()
        return self.successResultOf(client), wire

    def pumped(self, wire: Wire, reply: Deferred[bytes]) -> Deferred[bytes]:
        wire.pump()
        return reply

    def assertRefusal(self, reply: Deferred[bytes], code: Code, text: str) -> None:
        error = self.failureResultOf(reply, RPCError).value
        self.assertEqual((error.code, error.text), (code, text))

    def test_unary_call(self) -> None:
        """A call gives the reply; nothing is left on the clock."""
        client, wire = self.plain()
        self.assertEqual(self.successResultOf(self.pumped(wire, client.unary(ECHO, b"hello"))), b"hello")
        self.port.stop()
        wire.pump()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_refusal_is_an_error(self) -> None:
        """A status that is not OK fails the call with the server's code and text."""
        client, wire = self.plain()
        refused = self.pumped(wire, client.unary(FAIL, b""))
        self.assertRefusal(refused, Code.INVALID_ARGUMENT, "etcdserver: key is not provided")

    def test_silence_is_an_error(self) -> None:
        """A call without an answer ends with its time-out, on both ends."""
        client, wire = self.plain()
        reply = self.pumped(wire, client.unary(WAIT, b""))
        self.assertNoResult(reply)
        self.reactor.advance(CALL_TIMEOUT_S)
        wire.pump()
        self.assertEqual(self.failureResultOf(reply, RPCError).value.code, Code.DEADLINE_EXCEEDED)
        self.assertTrue(self.waiting[0].done)

    def test_cancelled_call_is_cancelled_at_the_server(self) -> None:
        """Cancelling the Deferred tells the server."""
        client, wire = self.plain()
        reply = self.pumped(wire, client.unary(WAIT, b""))
        reply.cancel()
        wire.pump()
        self.failureResultOf(reply, CancelledError)
        self.assertTrue(self.waiting[0].done)

    def test_lost_connection_fails_calls(self) -> None:
        """Calls in progress fail when the connection is lost, and later ones at once."""
        client, wire = self.plain()
        reply = self.pumped(wire, client.unary(WAIT, b""))
        lost = client.when_lost()
        wire.server.abortConnection()
        wire.pump()
        self.successResultOf(lost)
        self.assertRefusal(reply, Code.UNAVAILABLE, "transport is closing")
        self.assertRefusal(client.unary(ECHO, b""), Code.UNAVAILABLE, "transport is closing")
        self.successResultOf(client.when_lost())

    def test_calls_of_one_turn_leave_together(self) -> None:
        """Many calls made in one turn go out by one send."""
        client, wire = self.plain()
        before = wire.client.sends
        replies = [client.unary(ECHO, b"%d" % number) for number in range(20)]
        self.assertEqual(wire.client.sends, before)
        self.reactor.advance(0)
        self.assertEqual(wire.client.sends, before + 1)
        wire.pump()
        self.assertEqual([self.successResultOf(reply) for reply in replies], [b"%d" % number for number in range(20)])

    def test_stream(self) -> None:
        """A stream carries messages both ways and ends with a status."""
        client, wire = self.plain()
        messages: list[bytes] = []
        ends: list[tuple[int, str]] = []
        stream = client.open_stream(CHAT, messages.append, lambda code, text: ends.append((code, text)))
        stream.send(b"a")
        stream.send(b"b")
        wire.pump()
        self.assertEqual((messages, ends), ([b"A", b"B"], []))
        stream.half_close()
        wire.pump()
        self.assertEqual(ends, [(0, "")])

    def test_big_message_waits_for_the_server(self) -> None:
        """A message larger than the socket's buffer arrives whole."""
        client, wire = self.plain()
        wire.client.room = 10_000
        data = bytes(range(256)) * 2000
        reply = self.pumped(wire, client.unary(ECHO, data))
        wire.client.room = 1 << 40
        wire.pump()
        self.assertEqual(self.successResultOf(reply), data)

    def test_close(self) -> None:
        """Closing ends both sides."""
        client, wire = self.plain()
        closed = client.close()
        wire.pump()
        self.successResultOf(closed)
        self.assertFalse(wire.server.connected)

    def test_server_that_stops_takes_no_more_calls(self) -> None:
        """When the server says goodbye, calls in progress are answered and the connection ends."""
        client, wire = self.plain()
        reply = self.pumped(wire, client.unary(WAIT, b""))
        stopped = self.port.stop()
        wire.pump()
        self.assertNoResult(stopped)
        self.waiting[0].reply(b"late")
        wire.pump()
        self.assertEqual(self.successResultOf(reply), b"late")
        self.successResultOf(stopped)
        self.successResultOf(client.when_lost())

    def test_server_stops_although_a_client_ignores_it(self) -> None:
        """A client that does not take part in the farewell is left after a second."""
        _, wire = self.plain()
        stopped = self.port.stop()
        wire.client.stopReading()
        self.reactor.pump([0.3] * 5)
        wire.pump()
        self.successResultOf(stopped)

    def test_mutual_tls(self) -> None:
        """Over mutual TLS the server knows the client by its certificate."""
        made = ensure_certificates(self.mktemp())
        ca = str(made.ca.certificate)
        server = ServerContext(TLSConfig(str(made.server.certificate), str(made.server.key), ca), self.reactor)
        context = ClientContext(TLSConfig(str(made.client.certificate), str(made.client.key), ca), self.reactor)
        connecting, wire = self.connected(context, server)
        client: GrpcClient = self.successResultOf(connecting)
        self.pumped(wire, client.unary(WAIT, b""))
        self.assertEqual(self.waiting[0].peer.common_name, "twistedkv-client")
        self.waiting[0].reply(b"known")
        wire.pump()

    def test_failed_handshake_fails_the_connection(self) -> None:
        """A server that is not trusted is a failure to connect."""
        made, other = ensure_certificates(self.mktemp()), ensure_certificates(self.mktemp())
        server = ServerContext(TLSConfig(str(made.server.certificate), str(made.server.key)), self.reactor)
        context = ClientContext(TLSConfig(trusted_ca_file=str(other.ca.certificate)), self.reactor)
        connecting, _ = self.connected(context, server)
        self.assertIn("CERTIFICATE_VERIFY_FAILED", str(self.failureResultOf(connecting).value))

    def test_refused_connection(self) -> None:
        """Nobody listening is a failure to connect."""
        connecting = connect(self.reactor, "::1", 2379, None)
        _, _, factory, _, _ = self.reactor.tcpClients[-1]
        factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        self.failureResultOf(connecting, ConnectionRefusedError)

    def test_connecting_can_be_cancelled(self) -> None:
        """Giving up in the middle of the handshake closes the connection."""
        made = ensure_certificates(self.mktemp())
        context = ClientContext(TLSConfig(trusted_ca_file=str(made.ca.certificate)), self.reactor)
        connecting = connect(self.reactor, "127.0.0.1", 2379, context)
        socket = FakeSocket(self.reactor, self.reactor.tcpClients[-1][2].buildProtocol(None))
        socket.connect()
        connecting.cancel()
        self.reactor.advance(0)
        self.failureResultOf(connecting, CancelledError)
        self.assertFalse(socket.connected)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
