"""The transport whose writes go out at once, over Twisted's own buffering and a socket that can be full."""

from __future__ import annotations

from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import FakeSocket, Recorder, Wire
from twistedkv.protocols.transport import CLOSE_TIMEOUT_S, DirectTransport


class DirectTransportTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.inner = Recorder()
        self.closed: list[DirectTransport] = []
        self.direct = DirectTransport(self.inner, self.reactor, self.closed.append)
        self.socket = FakeSocket(self.reactor, self.direct)
        self.socket.connect()

    def turn(self) -> None:
        while self.socket.turn():
            self.reactor.advance(0)

    def test_write_leaves_at_once(self) -> None:
        """A write is on the wire when it returns, by one system call."""
        self.direct.write(b"hello")
        self.assertEqual((bytes(self.socket.wire), self.socket.sends), (b"hello", 1))
        self.assertFalse(self.socket.turn())

    def test_rest_follows_in_order(self) -> None:
        """What the socket does not take goes out later, before what was written after it."""
        self.socket.room = 3
        self.direct.write(b"abcdef")
        self.direct.writeSequence([b"gh", b"i"])
        self.assertEqual(bytes(self.socket.wire), b"abc")
        self.socket.room = 100
        self.turn()
        self.direct.write(b"j")
        self.assertEqual(bytes(self.socket.wire), b"abcdefghij")

    def test_big_write_goes_out_whole(self) -> None:
        """A write that the socket takes in several calls leaves nothing behind."""
        self.socket.limit = 1000
        data = bytes(range(256)) * 20
        self.direct.write(data)
        self.assertEqual(bytes(self.socket.wire), data)

    def test_producer_waits_for_the_peer(self) -> None:
        """A producer is paused while bytes wait, and resumed when the last one has gone."""
        self.direct.registerProducer(self.inner, True)
        self.socket.room = 1
        self.direct.write(b"abc")
        self.assertTrue(self.inner.paused)
        self.socket.room = 1
        self.turn()
        self.assertTrue(self.inner.paused)
        self.socket.room = 100
        self.turn()
        self.assertFalse(self.inner.paused)

    def test_late_producer_learns_that_bytes_wait(self) -> None:
        """A producer that registers while bytes wait starts out paused."""
        self.socket.room = 0
        self.direct.write(b"abc")
        self.direct.registerProducer(self.inner, True)
        self.assertTrue(self.inner.paused)

    def test_wrong_producers_are_refused(self) -> None:
        """A pull producer, or a second one, is our caller's fault."""
        self.assertRaises(ValueError, self.direct.registerProducer, self.inner, False)
        self.direct.registerProducer(self.inner, True)
        self.assertRaises(RuntimeError, self.direct.registerProducer, self.inner, True)

    def test_close_sends_what_is_queued(self) -> None:
        """Closing waits until everything written is on the wire, and drops what is written after it."""
        self.socket.room = 2
        self.direct.write(b"abcd")
        self.direct.loseConnection()
        self.direct.write(b"never")
        self.turn()
        self.assertEqual(self.inner.lost, [])
        self.socket.room = 100
        self.turn()
        self.assertEqual(bytes(self.socket.wire), b"abcd")
        self.assertEqual(len(self.inner.lost), 1)
        self.assertEqual(self.closed, [self.direct])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_close_waits_for_the_producer(self) -> None:
        """Closing with a producer at work waits until that has finished."""
        self.direct.registerProducer(self.inner, True)
        self.direct.loseConnection()
        self.direct.write(b"the end")
        self.turn()
        self.assertEqual(self.inner.lost, [])
        self.direct.unregisterProducer()
        self.turn()
        self.assertEqual((bytes(self.socket.wire), len(self.inner.lost)), (b"the end", 1))

    def test_peer_that_never_reads_cannot_hold_a_closing_connection(self) -> None:
        """A closing connection whose peer does not read is cut off after a while."""
        self.socket.room = 0
        self.direct.write(b"abcd")
        self.direct.loseConnection()
        self.turn()
        self.reactor.advance(CLOSE_TIMEOUT_S - 0.1)
        self.assertEqual(self.inner.lost, [])
        self.reactor.advance(0.2)
        self.reactor.advance(0)
        self.assertEqual(len(self.inner.lost), 1)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_error_inside_closes_one_connection(self) -> None:
        """An exception of the protocol is logged and ends its connection; the reactor does not see it."""

        def crash(data: bytes) -> None:
            raise RuntimeError("crash")

        self.inner.dataReceived = crash  # type: ignore[method-assign]
        self.direct.dataReceived(b"x")
        self.reactor.advance(0)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(len(self.inner.lost), 1)

    def test_lost_connection_stops_the_producer(self) -> None:
        """When the connection is lost the producer hears it, and nothing is written any more."""
        self.direct.registerProducer(self.inner, True)
        self.direct.abortConnection()
        self.reactor.advance(0)
        self.assertTrue(self.inner.stopped)
        self.direct.write(b"late")
        self.assertEqual(bytes(self.socket.wire), b"")

    def test_reading_can_be_paused(self) -> None:
        """A protocol that pauses its transport gets nothing until it resumes it."""
        other = Recorder()
        wire = Wire(self.reactor, other, DirectTransport(self.inner, self.reactor))
        assert self.inner.transport is not None
        self.inner.transport.pauseProducing()
        wire.client.write(b"abc")
        wire.pump()
        self.assertEqual(self.inner.received, b"")
        self.inner.transport.resumeProducing()
        wire.pump()
        self.assertEqual(self.inner.received, b"abc")

    def test_any_other_transport_does(self) -> None:
        """Over a transport that is no socket, writing and back-pressure work by Twisted's ordinary rules."""
        inner, plain = Recorder(), StringTransport()
        direct = DirectTransport(inner, self.reactor)
        direct.makeConnection(plain)
        direct.registerProducer(inner, True)
        direct.write(b"abc")
        plain.producer.pauseProducing()
        self.assertTrue(inner.paused)
        plain.producer.resumeProducing()
        self.assertFalse(inner.paused)
        direct.unregisterProducer()
        direct.loseConnection()
        self.assertEqual(plain.value(), b"abc")
        self.assertIsNone(plain.producer)
        self.assertTrue(plain.disconnecting)
