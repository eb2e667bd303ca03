"""TLS over a network in memory: handshakes that work, that are refused, that never end; rotation; closing."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import FakeSocket, Recorder, Wire
from twistedkv.certs import Certificates, ensure_certificates
from twistedkv.protocols.tls import (
    CertificateError,
    ClientContext,
    HandshakeGate,
    ServerContext,
    TLSConfig,
    TLSFactory,
    TLSTransport,
    Wrap,
)


def server_config(made: Certificates, mutual: bool = True) -> TLSConfig:
    ca = str(made.ca.certificate) if mutual else ""
    return TLSConfig(str(made.server.certificate), str(made.server.key), ca)


def client_config(made: Certificates, with_certificate: bool = True) -> TLSConfig:
    pair = (str(made.client.certificate), str(made.client.key)) if with_certificate else ("", "")
    return TLSConfig(*pair, trusted_ca_file=str(made.ca.certificate))


class TLSCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.made = ensure_certificates(self.mktemp())
        self.gate = HandshakeGate(limit=3)
        self.client, self.server = Recorder(), Recorder()
        self.refused: list[Failure] = []

    def server_end(self, context: ServerContext | None = None) -> TLSTransport:
        context = context or ServerContext(server_config(self.made), self.reactor)
        return TLSTransport(self.server, self.reactor, context.wrap, self.gate)

    def client_end(
        self, config: TLSConfig | None = None, host: str = "localhost", alpn: tuple[str, ...] = ("h2",)
    ) -> TLSTransport:
        context = ClientContext(config or client_config(self.made), self.reactor, alpn)
        return self.wrapped_client(context.wrap_for(host))

    def wrapped_client(self, wrap: Wrap) -> TLSTransport:
        return TLSTransport(self.client, self.reactor, wrap, HandshakeGate(), on_refused=self.refused.append)

    def connect(self, client: TLSTransport | None = None, server: TLSTransport | None = None, cut: int = 65536) -> Wire:
        wire = Wire(self.reactor, client or self.client_end(), server or self.server_end(), cut)
        wire.pump()
        return wire

    def outgoing(self, protocol: Recorder) -> TLSTransport:
        assert isinstance(protocol.transport, TLSTransport)
        return protocol.transport


class HandshakeTests(TLSCase):
    def test_both_ends_know_each_other(self) -> None:
        """After the handshake the server knows the client's name, and both know the protocol."""
        self.connect()
        self.assertEqual((self.client.made, self.server.made), (1, 1))
        server = self.outgoing(self.server)
        self.assertEqual(server.common_name, "twistedkv-client")
        self.assertTrue(server.secure)
        self.assertEqual(server.negotiatedProtocol, b"h2")
        self.assertEqual(self.outgoing(self.client).common_name, "twistedkv-server")
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(len(self.gate), 0)

    def test_bytes_pass_however_they_are_cut(self) -> None:
        """Handshake and data survive a network that delivers one byte at a time."""
        self.server.reply = bytes.upper
        wire = self.connect(cut=1)
        self.outgoing(self.client).write(b"hello")
        wire.pump()
        self.assertEqual(self.client.received, b"HELLO")

    def test_http1_is_preferred(self) -> None:
        """A client that offers both gets HTTP/1.1; one that offers nothing is served all the same."""
        self.connect(self.client_end(alpn=("h2", "http/1.1")))
        self.assertEqual(self.outgoing(self.server).negotiatedProtocol, b"http/1.1")
        self.client, self.server = Recorder(), Recorder()
        self.connect(self.client_end(alpn=()))
        self.assertIsNone(self.outgoing(self.server).negotiatedProtocol)

    def test_certificate_alone_asks_nothing_of_clients(self) -> None:
        """Without a CA the server takes clients without a certificate, and gives them no name."""
        context = ServerContext(server_config(self.made, mutual=False), self.reactor)
        self.connect(self.client_end(client_config(self.made, with_certificate=False)), self.server_end(context))
        self.assertEqual(self.server.made, 1)
        self.assertIsNone(self.outgoing(self.server).common_name)

    def test_client_without_certificate_is_refused(self) -> None:
        """A CA alone forces client certificates: without one the server's protocol is never connected, and the client
        is told by an alert.
        """
        self.connect(self.client_end(client_config(self.made, with_certificate=False)))
        self.assertEqual(self.server.made, 0)
        self.assertIn("CERTIFICATE_REQUIRED", str(self.client.lost[0].value))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_client_of_another_ca_is_refused(self) -> None:
        """A certificate that the CA did not sign does not open the door."""
        other = ensure_certificates(self.mktemp())
        config = TLSConfig(str(other.client.certificate), str(other.client.key), str(self.made.ca.certificate))
        self.connect(self.client_end(config))
        self.assertEqual(self.server.made, 0)
        self.assertIn("UNKNOWN_CA", str(self.client.lost[0].value))

    def test_server_certificate_is_no_client_certificate(self) -> None:
        """A certificate made for serving does not identify a client."""
        config = TLSConfig(str(self.made.server.certificate), str(self.made.server.key), str(self.made.ca.certificate))
        self.connect(self.client_end(config))
        self.assertEqual(self.server.made, 0)

    def test_old_tls_is_refused(self) -> None:
        """A client that speaks TLS 1.1 at most is refused by an alert."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.made.ca.certificate)
        context.load_cert_chain(self.made.client.certificate, self.made.client.key)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        self.connect(self.wrapped_client(lambda i, o: context.wrap_bio(i, o, server_hostname="localhost")))
        self.assertEqual((self.server.made, self.client.made), (0, 0))
        self.assertIn("ALERT_PROTOCOL_VERSION", str(self.refused[0].value))

    def test_wrong_name_is_refused_by_the_client(self) -> None:
        """A client does not talk to a server whose certificate is for another name, and says which error it was."""
        self.connect(self.client_end(host="elsewhere.example.org"))
        self.assertEqual((self.client.made, self.server.made), (0, 0))
        self.assertOneFailure(self.refused, ssl.SSLCertVerificationError)

    def assertOneFailure(self, failures: list[Failure], kind: type[BaseException]) -> None:
        self.assertEqual(len(failures), 1)
        self.assertIsNotNone(failures[0].check(kind))

    def test_garbage_is_refused(self) -> None:
        """Bytes that are no TLS end the connection, without an error in the log."""
        plain = Recorder()
        wire = Wire(self.reactor, plain, self.server_end())
        wire.client.write(b"GET / HTTP/1.1\r\n\r\n")
        wire.pump()
        self.assertEqual((len(plain.lost), self.server.made), (1, 0))
        self.assertEqual(len(self.gate), 0)

    def test_silent_client_is_dropped(self) -> None:
        """A client that does not finish its handshake within ten seconds is cut off."""
        silent = Recorder()
        wire = Wire(self.reactor, silent, self.server_end())
        self.reactor.advance(9.9)
        wire.pump()
        self.assertEqual(silent.lost, [])
        self.reactor.advance(0.2)
        wire.pump()
        self.assertEqual(len(silent.lost), 1)
        self.assertEqual((len(self.gate), self.reactor.getDelayedCalls()), (0, []))

    def test_crowd_of_silent_clients_does_not_lock_others_out(self) -> None:
        """When too many handshakes are under way the oldest one is dropped, and a newcomer gets through."""
        crowd = [Recorder() for _ in range(3)]
        wires = [Wire(self.reactor, silent, self.server_end()) for silent in crowd]
        self.connect()
        for wire in wires:
            wire.pump()
        self.assertEqual(self.server.made, 1)
        self.assertEqual([len(silent.lost) for silent in crowd], [1, 0, 0])

    def test_client_hears_that_the_server_hung_up(self) -> None:
        """A connection that ends in the middle of the handshake is a failure to connect."""
        client = self.client_end()
        socket = FakeSocket(self.reactor, client)
        socket.connect()
        socket.connectionLost(Failure(ConnectionDone()))
        self.assertOneFailure(self.refused, ConnectionDone)
        self.assertEqual((self.client.made, self.client.lost), (0, []))

    def test_renegotiation_and_tickets_are_off(self) -> None:
        """The server neither renegotiates nor hands out tickets that would outlive a change of the CA."""
        context = ServerContext(server_config(self.made), self.reactor).current()
        self.assertTrue(context.options & ssl.OP_NO_RENEGOTIATION)
        self.assertTrue(context.options & ssl.OP_NO_TICKET)
        self.assertEqual(context.num_tickets, 0)
        self.assertEqual(context.minimum_version, ssl.TLSVersion.TLSv1_2)

    def test_tls12_works(self) -> None:
        """The oldest version allowed is served."""
        context = ClientContext(client_config(self.made), self.reactor).current()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        self.server.reply = bytes.upper
        wire = self.connect(self.wrapped_client(lambda i, o: context.wrap_bio(i, o, server_hostname="localhost")))
        self.outgoing(self.client).write(b"old")
        wire.pump()
        self.assertEqual(self.client.received, b"OLD")


class DataTests(TLSCase):
    def test_one_read_is_one_delivery(self) -> None:
        """All records of one read of the socket arrive as one piece."""
        wire = self.connect()
        client = self.outgoing(self.client)
        for word in (b"a", b"b", b"c"):
            client.write(word)
        wire.pump()
        self.assertEqual((self.server.received, self.server.reads), (b"abc", 1))

    def test_one_write_is_one_send(self) -> None:
        """A write is encrypted and on the wire when it returns."""
        wire = self.connect()
        before = wire.client.sends
        self.outgoing(self.client).write(b"x" * 1000)
        self.assertEqual(wire.client.sends, before + 1)

    def test_big_writes_arrive_whole(self) -> None:
        """Megabytes pass through a narrow socket; the producer waits meanwhile and goes on afterwards."""
        wire = self.connect()
        data = os.urandom(3_000_000)
        client = self.outgoing(self.client)
        client.registerProducer(self.client, True)
        wire.client.room = 100_000
        client.write(data)
        self.assertTrue(self.client.paused)
        wire.pump()
        self.assertTrue(self.client.paused)
        wire.client.room = 1 << 40
        wire.pump()
        self.assertFalse(self.client.paused)
        self.assertEqual(self.server.received, data)

    def test_paused_reader_is_not_fed(self) -> None:
        """A protocol that does not read leaves the bytes in the network."""
        wire = self.connect()
        self.outgoing(self.server).pauseProducing()
        self.outgoing(self.client).write(b"abc")
        wire.pump()
        self.assertEqual(self.server.received, b"")
        self.outgoing(self.server).resumeProducing()
        wire.pump()
        self.assertEqual(self.server.received, b"abc")

    def test_tampered_bytes_end_the_connection(self) -> None:
        """A record that was changed on its way is not delivered and closes both ends."""
        wire = self.connect()
        self.outgoing(self.client).write(b"secret")
        wire.client.wire[-1] ^= 1
        wire.pump()
        self.assertEqual(self.server.received, b"")
        self.assertIn("BAD_RECORD_MAC", str(self.server.lost[0].value))
        self.assertEqual(len(self.client.lost), 1)

    def test_close_says_goodbye(self) -> None:
        """Closing sends what was written and TLS's close_notify; both ends see a clean end."""
        wire = self.connect()
        server = self.outgoing(self.server)
        server.write(b"the end")
        server.loseConnection()
        server.write(b"never")
        wire.pump()
        self.assertEqual(self.client.received, b"the end")
        self.assertIsNotNone(self.client.lost[0].check(ConnectionDone))
        self.assertIsNotNone(self.server.lost[0].check(ConnectionDone))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_request_with_the_goodbye_is_delivered(self) -> None:
        """Bytes that arrive in one read with the close_notify are delivered before the end."""
        wire = self.connect()
        client = self.outgoing(self.client)
        client.write(b"last words")
        client.loseConnection()
        wire.pump()
        self.assertEqual(self.server.received, b"last words")
        self.assertEqual(len(self.server.lost), 1)

    def test_abrupt_end(self) -> None:
        """A peer that vanishes without a close_notify is an ordinary end."""
        wire = self.connect()
        wire.client.abortConnection()
        wire.pump()
        self.assertEqual(len(self.server.lost), 1)

    def test_error_inside_closes_one_connection(self) -> None:
        """An exception of the protocol inside is logged and ends its own connection only."""

        def crash(data: bytes) -> bytes:
            raise RuntimeError("crash")

        self.server.reply = crash
        wire = self.connect()
        self.outgoing(self.client).write(b"x")
        wire.pump()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual((len(self.server.lost), len(self.client.lost)), (1, 1))


class RotationTests(TLSCase):
    def setUp(self) -> None:
        super().setUp()
        self.other = ensure_certificates(self.mktemp())
        self.context = ServerContext(server_config(self.made), self.reactor)
        self.first = self.context.current()

    def replace(self, certificate: bool = True, key: bool = True) -> None:
        for wanted, old, new in (
            (certificate, self.made.server.certificate, self.other.server.certificate),
            (key, self.made.server.key, self.other.server.key),
        ):
            if wanted:
                temporary = Path(self.mktemp())
                temporary.write_bytes(new.read_bytes())
                temporary.replace(old)

    def test_unchanged_files_are_not_read_again(self) -> None:
        """As long as the files stay, so does the context."""
        self.reactor.advance(5)
        self.assertIs(self.context.current(), self.first)

    def test_new_files_count_for_new_connections(self) -> None:
        """A connection that comes in a second after a rotation sees the new certificate."""
        self.replace()
        self.assertIs(self.context.current(), self.first)
        self.reactor.advance(1)
        self.assertIsNot(self.context.current(), self.first)
        self.connect(self.client_end(client_config(self.made)), self.server_end(self.context))
        self.assertEqual(self.client.made, 0)  # the client's CA does not know the new one
        self.assertEqual(len(self.refused), 1)

    def test_half_a_rotation_keeps_the_old_pair(self) -> None:
        """Between the new certificate and its key the old pair serves; then the new one does."""
        self.replace(key=False)
        self.reactor.advance(1)
        self.assertIs(self.context.current(), self.first)
        self.replace(certificate=False)
        self.reactor.advance(1)
        self.assertIsNot(self.context.current(), self.first)

    def test_missing_file_keeps_the_old_pair(self) -> None:
        """A file that is gone does not stop the server."""
        self.made.server.key.unlink()
        self.reactor.advance(1)
        self.assertIs(self.context.current(), self.first)

    def test_unusable_files_say_so_at_the_start(self) -> None:
        """A server that never had a certificate fails with one line naming the file."""
        self.made.server.certificate.write_text("nonsense")
        fresh = ServerContext(server_config(self.made), self.reactor)
        self.assertIn("server.crt", str(self.assertRaises(CertificateError, fresh.current)))
        nothing = ServerContext(TLSConfig(), self.reactor)
        self.assertRaises(CertificateError, nothing.current)
        half = ClientContext(TLSConfig(cert_file="client.crt"), self.reactor)
        self.assertRaises(CertificateError, half.current)
        no_ca = ClientContext(TLSConfig(trusted_ca_file="missing.crt"), self.reactor)
        self.assertIn("missing.crt", str(self.assertRaises(CertificateError, no_ca.current)))

    def test_connection_without_usable_files_is_dropped(self) -> None:
        """If the first connection finds no usable certificate it is closed; the reason is logged once."""
        self.made.server.certificate.write_text("nonsense")
        fresh = ServerContext(server_config(self.made), self.reactor)
        plain = Recorder()
        Wire(self.reactor, plain, self.server_end(fresh)).pump()
        self.assertEqual((len(plain.lost), self.server.made), (1, 0))


class TLSFactoryTests(TLSCase):
    def test_factory_puts_tls_under_a_protocol(self) -> None:
        """The protocols of any factory can be served over TLS."""
        inner = Factory.forProtocol(Recorder)
        factory = TLSFactory(inner, ServerContext(server_config(self.made), self.reactor), self.reactor)
        transport = factory.buildProtocol(None)
        assert transport is not None
        self.connect(server=transport)
        self.assertEqual(self.client.made, 1)
