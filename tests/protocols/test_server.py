"""The client port over a network in memory: what is spoken, batching, back-pressure, time-outs, and the graceful
stop."""

from __future__ import annotations

from math import inf

from twisted.internet.interfaces import IProtocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http import HTTPChannel, Request

from tests.fakes import FakeGrpc, Recorder, Wire
from twistedkv.certs import ensure_certificates
from twistedkv.protocols.rpc import Peer
from twistedkv.protocols.server import (
    HTTP1_METHODS,
    KEEPALIVE_TICK_S,
    PREFACE,
    SILENCE_TIMEOUT_S,
    STOP_TIMEOUT_S,
    TICK_S,
    ClientPort,
)
from twistedkv.protocols.tls import ClientContext, HandshakeGate, ServerContext, TLSConfig, TLSTransport
from twistedkv.protocols.turn import Turn


class Draining(Recorder):
    """An HTTP/1.1 protocol that can say goodbye."""

    def go_away(self) -> None:
        assert self.transport is not None
        self.transport.write(b"bye")
        self.transport.loseConnection()


class PortCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.turn = Turn(self.reactor)
        self.grpc: list[FakeGrpc] = []
        self.http1: list[Recorder] = []
        self.peers: list[Peer] = []
        self.http1_kind: type[Recorder] = Recorder
        self.port = ClientPort(self.reactor, self.make_grpc, self.make_http1, self.turn)
        self.client = Recorder()

    def make_grpc(self, peer: Peer) -> FakeGrpc:
        self.grpc.append(FakeGrpc(peer))
        return self.grpc[-1]

    def make_http1(self, peer: Peer) -> IProtocol:
        self.peers.append(peer)
        self.http1.append(self.http1_kind())
        return self.http1[-1]

    def connect(self, client: Recorder | None = None, cut: int = 65536) -> Wire:
        wire = Wire(self.reactor, client or self.client, self.port.build(None), cut)
        wire.pump()
        return wire

    def say(self, wire: Wire, data: bytes) -> None:
        wire.client.write(data)
        wire.pump()


class OpeningTests(PortCase):
    def test_preface_means_grpc(self) -> None:
        """A connection that begins with HTTP/2's preface is gRPC's; the preface belongs to it."""
        self.say(self.connect(), PREFACE + b"frames")
        self.assertEqual(self.grpc[0].received, PREFACE + b"frames")
        self.assertEqual(self.client.received, b"<settings>" + PREFACE + b"frames")
        self.assertEqual(self.grpc[0].peer, Peer("192.0.2.7", 4711, None, False))

    def test_port_without_grpc(self) -> None:
        """A port that was given no gRPC serves HTTP/1.1, and closes what begins with HTTP/2's preface."""
        self.port = ClientPort(self.reactor, None, self.make_http1, self.turn)
        self.say(self.connect(), b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual([each.received for each in self.http1], [b"GET / HTTP/1.1\r\n\r\n"])
        stranger = Recorder()
        self.say(self.connect(stranger), PREFACE)
        self.assertEqual((len(stranger.lost), self.grpc, len(self.http1)), (1, [], 1))

    def test_preface_may_be_cut_anywhere(self) -> None:
        """It does not matter how the network cuts the first bytes, for either protocol."""
        for cut in range(1, len(PREFACE) + 2):
            self.say(self.connect(cut=cut), PREFACE + b"frames")
            self.assertEqual(self.grpc[-1].received, PREFACE + b"frames")
            for method in HTTP1_METHODS:
                self.say(self.connect(cut=cut), method + b"/health HTTP/1.1\r\n\r\n")
                self.assertEqual(self.http1[-1].received, method + b"/health HTTP/1.1\r\n\r\n")

    def test_garbage_is_closed(self) -> None:
        """What is neither protocol is closed as soon as that is clear, without an answer."""
        for garbage in (
            b"\x16\x03\x01\x00\xa5\x01",
            b"PRI * HTTP/1.0\r\n",
            b"GETS /",
            b"\0",
            b"get / HTTP/1.1\r\n",
            b"PRX",
        ):
            client = Recorder()
            self.say(self.connect(client), garbage)
            self.assertEqual((len(client.lost), client.received), (1, b""), garbage)
        self.assertEqual((self.grpc, self.http1), ([], []))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_silent_connection_is_closed(self) -> None:
        """Who says nothing, or only half a word, within ten seconds is cut off; who spoke stays."""
        speaker = Recorder()
        self.say(self.connect(speaker), PREFACE)
        wire = self.connect()
        self.say(wire, b"PR")
        self.reactor.advance(SILENCE_TIMEOUT_S)
        wire.pump()
        self.assertEqual((len(self.client.lost), speaker.lost), (1, []))

    def test_port_wants_no_delay(self) -> None:
        """Small answers are not held back, and dead peers are noticed in the end."""
        self.assertEqual(self.connect().server.options, {"nodelay": True, "keepalive": True})

    def test_lost_before_a_word(self) -> None:
        """A connection that comes and goes leaves nothing behind."""
        wire = self.connect()
        wire.client.abortConnection()
        wire.pump()
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class TLSPortTests(PortCase):
    def setUp(self) -> None:
        super().setUp()
        self.made = ensure_certificates(self.mktemp())
        made = self.made
        config = TLSConfig(str(made.server.certificate), str(made.server.key), str(made.ca.certificate))
        self.context = ServerContext(config, self.reactor)

    def tls_connect(self, *alpn: str) -> Wire:
        pair = self.made.client
        config = TLSConfig(str(pair.certificate), str(pair.key), str(self.made.ca.certificate))
        wrap = ClientContext(config, self.reactor, alpn).wrap_for("localhost")
        client = TLSTransport(self.client, self.reactor, wrap, HandshakeGate())
        wire = Wire(self.reactor, client, self.port.build(self.context))
        wire.pump()
        return wire

    def tls_say(self, wire: Wire, data: bytes) -> None:
        assert self.client.transport is not None
        self.client.transport.write(data)
        wire.pump()

    def test_client_is_known_by_its_certificate(self) -> None:
        """A gRPC client over TLS arrives with its common name."""
        self.tls_say(self.tls_connect("h2"), PREFACE)
        self.assertEqual(self.grpc[0].peer, Peer("192.0.2.7", 4711, "twistedkv-client", True))
        self.assertEqual(self.client.received, b"<settings>" + PREFACE)

    def test_alpn_is_binding(self) -> None:
        """A client that chose h2 cannot speak HTTP/1.1, and the other way round."""
        wire = self.tls_connect("h2")
        self.tls_say(wire, b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual(len(self.client.lost), 1)
        self.client = Recorder()
        self.tls_say(self.tls_connect("h2", "http/1.1"), PREFACE)
        self.assertEqual((len(self.client.lost), self.grpc, self.http1), (1, [], []))

    def test_without_alpn_the_first_bytes_decide(self) -> None:
        """A TLS client without ALPN is recognised as in plaintext."""
        self.tls_say(self.tls_connect(), PREFACE)
        self.client = Recorder()
        self.tls_say(self.tls_connect(), b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual((len(self.grpc), len(self.http1)), (1, 1))
        self.assertEqual(self.peers[0].common_name, "twistedkv-client")

    def test_stop_drops_a_handshake(self) -> None:
        """A connection in the middle of its handshake does not hold up the stop."""
        silent = Recorder()
        wire = Wire(self.reactor, silent, self.port.build(self.context))
        stopped = self.port.stop()
        wire.pump()
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_twisted_web_serves_here(self) -> None:
        """twisted.web's HTTP channel works on the port's transport as it does on its own."""

        class Hello(Request):
            def process(self) -> None:
                self.write(b"secure" if self.isSecure() else b"plain")
                self.finish()

        def make(peer: Peer) -> IProtocol:
            channel = HTTPChannel()
            channel.requestFactory = Hello
            channel.callLater = self.reactor.callLater
            return channel

        self.port.http1_factory = make
        wire = self.tls_connect("http/1.1")
        self.tls_say(wire, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        self.assertEqual(self.client.received.count(b"secure"), 2)
        plain = Recorder()
        self.say(self.connect(plain), b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        self.assertIn(b"plain", plain.received)
        self.assertEqual(len(plain.lost), 1)


class TurnTests(PortCase):
    def setUp(self) -> None:
        super().setUp()
        self.wire = self.connect()
        self.say(self.wire, PREFACE)
        self.client.received = b""
        self.sends = self.wire.server.sends

    def sent(self) -> int:
        return self.wire.server.sends - self.sends

    def test_replies_of_one_turn_leave_together(self) -> None:
        """Answers given within a bracket, however deep, go out by one send at its end."""
        with self.turn:
            with self.turn:
                self.grpc[0].answer(b"one ")
            self.grpc[0].answer(b"two ")
            self.assertEqual(self.sent(), 0)
        self.assertEqual(self.sent(), 1)
        self.wire.pump()
        self.assertEqual(self.client.received, b"one two ")

    def test_reply_outside_of_a_bracket_leaves_next(self) -> None:
        """Answers given outside of any bracket go out together as the reactor's next deed."""
        self.grpc[0].answer(b"one ")
        self.grpc[0].answer(b"two ")
        self.assertEqual((self.sent(), len(self.reactor.getDelayedCalls())), (0, 1))
        self.reactor.advance(0)
        self.assertEqual(self.sent(), 1)

    def test_replies_leave_even_if_the_bracket_fails(self) -> None:
        """An error within the bracket passes on, after the output of others has gone out."""
        with self.assertRaises(KeyError), self.turn:
            self.grpc[0].answer(b"one")
            raise KeyError
        self.assertEqual(self.sent(), 1)

    def test_failing_connection_does_not_stop_the_others(self) -> None:
        """A connection whose output cannot be taken is cut off, and the next one is served."""
        other = Recorder()
        wire = self.connect(other)
        self.say(wire, PREFACE)
        with self.turn:
            self.grpc[0].answer(b"crash-late")
            self.grpc[1].answer(b"fine")
        self.wire.pump()
        wire.pump()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual((len(self.client.lost), other.lost), (1, []))
        self.assertTrue(other.received.endswith(b"fine"))

    def test_endless_stream_leaves_the_reactor_alone(self) -> None:
        """A connection that has more output each time it is flushed gets one flush a turn."""
        flushes: list[int] = []
        turn, reactor = self.turn, self.reactor

        class Endless:
            def flush(self) -> None:
                flushes.append(1)
                if len(flushes) < 3:
                    turn.mark(self)

            def abort(self) -> None:
                raise AssertionError

        with turn:
            turn.mark(Endless())
        self.assertEqual((len(flushes), len(reactor.getDelayedCalls())), (1, 1))
        reactor.advance(0)
        self.assertEqual(len(flushes), 3)


class GrpcTests(PortCase):
    def open(self) -> tuple[Wire, FakeGrpc]:
        wire = self.connect()
        self.say(wire, PREFACE)
        return wire, self.grpc[-1]

    def test_slow_reader_is_felt_by_grpc(self) -> None:
        """While the client does not read, answers stay with gRPC, which bounds them; then they go out."""
        wire, grpc = self.open()
        wire.server.room = 0
        grpc.answer(b"one ")
        self.reactor.advance(0)
        self.assertEqual(grpc.log[-1], "pause")
        grpc.answer(b"two")
        self.reactor.advance(0)
        self.assertEqual(grpc.take_output(), b"two")
        grpc.answer(b"three")
        wire.server.room = 1 << 40
        wire.pump()
        self.assertEqual(grpc.log[-1], "resume")
        self.assertTrue(self.client.received.endswith(b"one three"))

    def test_closing_connection_says_its_last_words(self) -> None:
        """When gRPC wants to close, what it has to say is sent first."""
        wire, grpc = self.open()
        self.say(wire, b"quit")
        self.assertTrue(self.client.received.endswith(b"quit"))
        self.assertEqual(len(self.client.lost), 1)
        self.assertEqual(grpc.log[-1], "lost")

    def test_closing_does_not_wait_for_a_reader(self) -> None:
        """A client that is thrown out and does not read is cut off after a while."""
        wire, _ = self.open()
        wire.server.room = 0
        self.say(wire, b"something")
        self.say(wire, b"quit")
        self.assertEqual(self.client.lost, [])
        self.reactor.advance(10)
        wire.pump()
        self.assertEqual(len(self.client.lost), 1)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_crash_in_a_handler_ends_one_connection(self) -> None:
        """An error out of gRPC is logged and ends this connection only."""
        wire, grpc = self.open()
        self.say(wire, b"crash")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual((len(self.client.lost), grpc.log[-1]), (1, "lost"))

    def test_deadlines_are_looked_at_while_calls_are_open(self) -> None:
        """The port ticks as long as a call is open, and not at all without one."""
        wire, grpc = self.open()
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.say(wire, b"hold")
        self.reactor.pump([TICK_S] * 3)
        self.assertEqual(grpc.log.count("expire 0.10"), 1)
        grpc.answer(b"done")
        self.reactor.pump([TICK_S] * 2)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_lost_connection_cancels(self) -> None:
        """gRPC hears of a lost connection, once."""
        wire, grpc = self.open()
        wire.client.abortConnection()
        wire.pump()
        self.assertEqual(grpc.log.count("lost"), 1)
        self.assertEqual(self.port.grpc_connections, {})


class KeepaliveTests(PortCase):
    """The timer that all connections share; when one is due is its codec's affair."""

    def open(self, due_s: float | None) -> tuple[Recorder, FakeGrpc]:
        client, port_factory = Recorder(), self.port.grpc_factory

        def make(peer: Peer) -> FakeGrpc:
            grpc = self.make_grpc(peer)
            grpc.due_s = due_s
            return grpc

        self.port.grpc_factory = make
        wire = self.connect(client)
        self.say(wire, PREFACE)
        self.port.grpc_factory = port_factory
        self.addCleanup(wire.pump)
        self.wires.append(wire)
        return client, self.grpc[-1]

    def setUp(self) -> None:
        super().setUp()
        self.wires: list[Wire] = []

    def asked(self, grpc: FakeGrpc) -> list[str]:
        return [line for line in grpc.log if line.startswith("keep_alive")]

    def test_one_timer_serves_all(self) -> None:
        """However many connections there are, there is one timer; all are asked when the first one is due."""
        opened = [self.open(due_s)[1] for due_s in (100.0, 200.0, 300.0)]
        self.assertEqual([call.getTime() for call in self.reactor.getDelayedCalls()], [100.0])
        opened[0].due_s = 250.0
        self.reactor.advance(100)
        self.assertEqual([self.asked(grpc)[1:] for grpc in opened], [["keep_alive 100.00"]] * 3)
        self.assertEqual([call.getTime() for call in self.reactor.getDelayedCalls()], [200.0])

    def test_timer_is_coarse(self) -> None:
        """Connections that are due at almost the same time are asked together."""
        self.open(0.001)
        self.assertEqual([call.getTime() for call in self.reactor.getDelayedCalls()], [KEEPALIVE_TICK_S])

    def test_without_keepalive_there_is_no_timer(self) -> None:
        """Connections that are never due cost nothing."""
        self.open(inf)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_timer_ends_with_the_connections(self) -> None:
        """Once the last connection is gone the timer runs out and is not set again."""
        self.open(10.0)
        self.wires[0].client.abortConnection()
        self.wires[0].pump()
        self.reactor.advance(10)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_dead_client_is_cut_off(self) -> None:
        """A client that the codec gives up is cut off at once, whatever still waits for it; others stay."""
        dead, grpc = self.open(10.0)
        living, other = self.open(10.0)
        self.wires[0].server.room = 0
        with self.turn:
            grpc.answer(b"never read")
        grpc.due_s, other.due_s = None, 20.0
        self.reactor.advance(10)
        for wire in self.wires:
            wire.pump()
        self.assertEqual((len(dead.lost), living.lost), (1, []))
        self.assertEqual(grpc.log[-1], "lost")
        self.assertEqual(list(self.port.grpc_connections), [self.wires[1].server.protocol._inner])

    def test_stop_leaves_no_timer(self) -> None:
        """The timer ends with the port."""
        self.open(10.0)
        stopped = self.port.stop()
        self.wires[0].pump()
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class StopTests(PortCase):
    def test_stop_without_connections(self) -> None:
        """Nothing to wait for: the stop is done at once, also the second time."""
        self.successResultOf(self.port.stop())
        self.successResultOf(self.port.stop())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_idle_connections_are_closed(self) -> None:
        """Idle gRPC connections and those that said nothing yet go at once."""
        silent = Recorder()
        wires = [self.connect(silent), self.connect()]
        self.say(wires[1], PREFACE)
        stopped = self.port.stop()
        for wire in wires:
            wire.pump()
        self.successResultOf(stopped)
        self.assertEqual((len(silent.lost), len(self.client.lost)), (1, 1))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_calls_in_progress_end_first(self) -> None:
        """A connection with an open call stays until the call is answered."""
        wire = self.connect()
        self.say(wire, PREFACE + b"hold")
        stopped, again = self.port.stop(), self.port.stop()
        wire.pump()
        self.assertNoResult(stopped)
        self.grpc[0].answer(b"answer")
        wire.pump()
        self.successResultOf(stopped)
        self.successResultOf(again)
        self.assertTrue(self.client.received.endswith(b"answer"))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop_does_not_wait_for_ever(self) -> None:
        """A call that does not end is cut off with the time-out."""
        wire = self.connect()
        self.say(wire, PREFACE + b"hold")
        stopped = self.port.stop()
        self.reactor.advance(STOP_TIMEOUT_S - 0.1)
        self.assertNoResult(stopped)
        self.reactor.advance(0.1)
        wire.pump()
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_http1_that_can_say_goodbye_does(self) -> None:
        """An HTTP/1.1 protocol with ``go_away`` ends in its own way."""
        self.http1_kind = Draining
        wire = self.connect()
        self.say(wire, b"GET / HTTP/1.1\r\n\r\n")
        stopped = self.port.stop()
        wire.pump()
        self.successResultOf(stopped)
        self.assertEqual(self.client.received, b"bye")

    def test_http1_that_cannot_is_cut_off(self) -> None:
        """An HTTP/1.1 protocol without ``go_away`` has until the time-out."""
        wire = self.connect()
        self.say(wire, b"GET / HTTP/1.1\r\n\r\n")
        stopped = self.port.stop(timeout_s=2)
        self.assertNoResult(stopped)
        self.reactor.advance(2)
        wire.pump()
        self.successResultOf(stopped)

    def test_connection_accepted_during_the_stop(self) -> None:
        """A connection that was silent when the stop began does not become a new guest."""
        busy = Recorder()
        wire = self.connect(busy)
        self.say(wire, PREFACE + b"hold")
        self.port.stop()
        late = self.port.listen("127.0.0.1", 0, None)
        self.assertIsNotNone(late)
        factory = self.reactor.tcpServers[-1][1]
        self.assertIsNone(factory.buildProtocol(None))
