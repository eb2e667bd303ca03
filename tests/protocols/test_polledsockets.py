"""Connections that a poller reads, over real sockets, plain and TLS: what arrives, how they end, who is not hurt."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from errno import ENOSPC
from typing import Any, cast

from twisted.internet import reactor as trial_reactor  # noqa: TID251  the one that trial runs
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import ClientFactory, Factory
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from tests.fakes import FakeGrpc, Recorder
from tests.protocols.test_poller import NO_EPOLL, Told
from tests.protocols.test_tls import client_config, server_config
from twistedkv.certs import Certificates, ensure_certificates
from twistedkv.protocols.poller import Poller
from twistedkv.protocols.server import PREFACE, ClientPort
from twistedkv.protocols.tls import ClientContext, HandshakeGate, ServerContext, TLSTransport
from twistedkv.protocols.transport import READ_BYTES, DirectTransport
from twistedkv.protocols.turn import Turn

reactor: Any = trial_reactor
MOST_TURNS = 600  # the first hundred at once, the others a millisecond apart
BUFFER_BYTES = 1 << 17  # of the sockets, so that it does not depend on the system what they take
BIG = bytes(range(256)) * 8192  # 2 MiB: more than they take as long as nobody reads


class Scripted(Recorder):
    """Does something whenever it is read, after it has noted what came."""

    act: Callable[[], object] = staticmethod(lambda: None)

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.act()


class Client:
    """The other end: a bare socket, which reads only when it is told to."""

    def __init__(self, number: int) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._socket.connect(("127.0.0.1", number))
        self._socket.setblocking(False)
        self._received = bytearray()
        self._unsent = b""
        self.end = ""  # how it ended, as far as was read

    def send(self, data: bytes = b"") -> bool:
        """Whether everything is on its way, this and what could not be sent before."""
        self._unsent += data
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        return not self._unsent

    def read(self) -> bytes:
        """All that has come up to now."""
        try:
            while not self.end:
                data = self._socket.recv(1 << 20)
                self._received += data
                self.end = "" if data else "closed"
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.end = "reset"
        return bytes(self._received)

    def ended(self) -> str:
        """How the connection ended; empty: not yet."""
        self.read()
        return self.end

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        """End the connection by TCP's RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


@dataclass
class Link:
    """One connection, seen from everywhere."""

    client: Client
    inner: Scripted
    transport: DirectTransport

    @property
    def descriptor(self) -> int:
        return int(self.transport.transport.fileno())


class RealCase(TestCase):
    """A listener of the real reactor, all connections of which are read by one poller."""

    skip = NO_EPOLL
    timeout = 20

    def setUp(self) -> None:
        self.poller = Poller(reactor, Turn(reactor))
        self.transports: list[DirectTransport] = []
        self.inners: list[Scripted] = []
        self.clients: list[Client] = []
        self.closed: list[DirectTransport] = []
        factory = Factory()
        factory.buildProtocol = lambda addr: self.build()  # type: ignore[method-assign]
        factory.noisy = False
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)  # which its connections inherit
        self.addCleanup(port.stopListening)
        self.addCleanup(self.end)
        self.number: int = port.getHost().port

    async def end(self) -> None:
        for client in self.clients:
            client.close()
        for transport in self.transports:
            transport.abortConnection()
        await self.until(lambda: len(self.closed) >= len(self.transports))
        self.assert_idle()

    def build(self) -> DirectTransport:
        self.inners.append(Scripted())
        self.transports.append(self.build_transport(self.inners[-1]))
        return self.transports[-1]

    def build_transport(self, inner: Scripted) -> DirectTransport:
        return DirectTransport(inner, reactor, self.closed.append, self.poller)

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the reactor turn until ``condition`` is true, which it has to be soon."""
        for turn in range(MOST_TURNS):
            if condition():
                return
            await deferLater(reactor, 0.0 if turn < 100 else 0.001)
        self.fail("it does not happen")

    async def turns(self) -> None:
        """Give what must not happen its opportunity."""
        for _ in range(20):
            await deferLater(reactor, 0.0)

    def assert_same(self, data: bytes, wanted: bytes) -> None:
        """Megabytes are equal; that they are not is said in few words."""
        self.assertTrue(data == wanted, f"{len(data)} bytes where {len(wanted)} others are wanted")

    def assert_idle(self) -> None:
        """Nothing of the poller is left."""
        self.assertEqual((self.poller.fileno(), self.poller in reactor.getReaders()), (-1, False))

    async def assert_ended(self, inner: Scripted, transport: DirectTransport) -> None:
        """The only connection is over, and everybody heard of it once."""
        await self.until(lambda: inner.lost and self.closed)
        await self.turns()
        self.assertEqual((len(inner.lost), self.closed), (1, [transport]))
        self.assert_idle()


class PlainCase(RealCase):
    async def connect(self) -> Link:
        count = len(self.inners)
        self.clients.append(Client(self.number))
        await self.until(lambda: len(self.inners) > count and self.inners[-1].made)
        return Link(self.clients[-1], self.inners[-1], self.transports[-1])

    async def assert_echoes(self, *links: Link) -> None:
        """These connections work."""
        for number, link in enumerate(links):
            link.inner.reply = bytes.upper
            before = link.client.read()
            link.client.send(b"<hello %d>" % number)
            wanted = before + b"<HELLO %d>" % number
            await self.until(lambda link=link, wanted=wanted: link.client.read() == wanted)  # type: ignore[misc]

    def read_once(self, *links: Link) -> None:
        """One turn of the poller, in which all ``links`` have something."""
        sockets = [link.transport.transport.socket for link in links]
        for _ in range(1000):
            if len(select.select(sockets, [], [], 1.0)[0]) == len(sockets):
                break
        self.poller.doRead()


class ReadingTests(PlainCase):
    async def test_echo(self) -> None:
        """What a client says is answered, and it is not the reactor that reads it."""
        one = await self.connect()
        await self.assert_echoes(one, one)
        readers = reactor.getReaders()
        self.assertIn(self.poller, readers)
        self.assertNotIn(one.transport.transport, readers)

    async def test_many_in_one_turn(self) -> None:
        """All connections that have something are read in one turn."""
        links = [await self.connect() for _ in range(20)]
        for number, link in enumerate(links):
            link.client.send(b"%d" % number)
        self.read_once(*links)
        self.assertEqual([link.inner.received for link in links], [b"%d" % number for number in range(20)])
        await self.assert_echoes(*links)

    async def test_more_than_one_read_takes(self) -> None:
        """What is more than one read takes arrives whole, over several turns."""
        one = await self.connect()
        data = BIG[: 5 * READ_BYTES]
        one.client.send(data)
        await self.until(lambda: one.client.send() and len(one.inner.received) >= len(data))
        self.assert_same(one.inner.received, data)
        self.assertGreater(one.inner.reads, 4)

    async def test_pause_and_resume(self) -> None:
        """A protocol that pauses gets nothing, however long, until it resumes; others are read meanwhile."""
        one, two = await self.connect(), await self.connect()
        one.transport.pauseProducing()
        one.client.send(b"abc")
        await self.assert_echoes(two)
        two.transport.pauseProducing()  # then there is none left
        await self.turns()
        self.assertEqual(one.inner.received, b"")
        self.assert_idle()
        for link in (one, two):
            link.transport.resumeProducing()
            link.transport.resumeProducing()  # a second time changes nothing
        await self.until(lambda: one.inner.received == b"abc")
        await self.assert_echoes(one, two)

    async def test_pause_in_the_middle(self) -> None:
        """A protocol that pauses while it is read is not read again, though more has come, until it resumes."""
        one = await self.connect()
        one.inner.act = one.transport.pauseProducing
        data = BIG[: READ_BYTES + 1000]
        one.client.send(data)
        await self.until(lambda: one.client.send() and one.inner.reads)
        await self.turns()
        self.assertEqual(one.inner.reads, 1)
        one.inner.act = lambda: None
        one.transport.resumeProducing()
        await self.until(lambda: len(one.inner.received) >= len(data))
        self.assert_same(one.inner.received, data)

    async def test_pause_for_a_moment(self) -> None:
        """A protocol that pauses and resumes while it is read misses nothing, also if it is the only one."""
        one = await self.connect()

        def blink() -> None:
            one.transport.pauseProducing()
            one.transport.resumeProducing()

        one.inner.act = blink
        await self.assert_echoes(one, one, one)

    async def test_big_answer_arrives_whole(self) -> None:
        """An answer larger than the socket takes arrives whole; its producer waits meanwhile and goes on afterwards."""
        one = await self.connect()
        one.transport.registerProducer(cast(Any, one.inner), True)
        one.transport.write(BIG)
        one.transport.write(b"!")
        self.assertTrue(one.inner.paused)
        await self.assert_reads_on(one)
        await self.until(lambda: len(one.client.read()) > len(BIG))
        self.assert_same(one.client.read(), BIG + b"!")
        await self.until(lambda: not one.inner.paused)
        one.transport.unregisterProducer()

    async def assert_reads_on(self, link: Link) -> None:
        """It is read although its own bytes wait."""
        link.client.send(b"more")
        await self.until(lambda: link.inner.received == b"more")


class EndTests(PlainCase):
    async def test_peer_closes(self) -> None:
        """A clean end is told once, after everything that came before it."""
        one = await self.connect()
        data = BIG[: READ_BYTES + 1000]
        one.client.send(data)
        await self.until(lambda: one.client.send() and one.inner.reads)
        one.client.close()
        await self.assert_ended(one.inner, one.transport)
        self.assert_same(one.inner.received, data)
        self.assertIsNotNone(one.inner.lost[0].check(ConnectionDone))

    async def test_peer_closes_while_paused(self) -> None:
        """A paused protocol hears of the end when it has resumed, and of what came before."""
        one = await self.connect()
        one.transport.pauseProducing()
        one.client.send(b"abc")
        one.client.close()
        await self.turns()
        self.assertEqual((one.inner.received, one.inner.lost), (b"", []))
        one.transport.resumeProducing()
        await self.assert_ended(one.inner, one.transport)
        self.assertEqual(one.inner.received, b"abc")

    async def test_peer_resets(self) -> None:
        """A reset is told once, and others go on."""
        one, two = await self.connect(), await self.connect()
        one.client.reset()
        await self.until(lambda: self.closed)
        await self.assert_echoes(two)
        self.assertEqual((len(one.inner.lost), self.closed), (1, [one.transport]))

    async def test_reset_is_no_clean_end(self) -> None:
        """A reset is told as a connection that was lost, as it is where the reactor reads."""
        one = await self.connect()
        one.client.reset()
        await self.assert_ended(one.inner, one.transport)
        self.assertIsNotNone(one.inner.lost[0].check(ConnectionLost), repr(one.inner.lost[0].value))

    async def test_peer_resets_while_bytes_wait(self) -> None:
        """A reset ends a connection whose peer did not read, also one that was closed already."""
        for closing in (False, True):
            one = await self.connect()
            one.transport.write(BIG)
            if closing:
                one.transport.loseConnection()
            await self.turns()
            self.assertEqual(one.inner.lost, [])
            one.client.reset()
            await self.assert_ended(one.inner, one.transport)
            self.closed.clear()
            self.transports.clear()

    async def test_write_to_who_is_gone(self) -> None:
        """A write that fails ends the connection, also if nobody reads it."""
        one = await self.connect()
        one.transport.pauseProducing()
        one.client.reset()
        await self.turns()
        self.assertEqual(one.inner.lost, [])
        one.transport.write(b"abc")
        await self.assert_ended(one.inner, one.transport)

    async def test_close_sends_what_is_queued(self) -> None:
        """A closed connection reads nothing, waits for its peer to take what was written, and ends cleanly."""
        one = await self.connect()
        one.transport.write(BIG)
        one.transport.loseConnection()
        one.client.send(b"late")
        await self.turns()
        self.assertEqual((one.inner.received, one.inner.lost), (b"", []))
        self.assert_idle()
        one.transport.resumeProducing()  # not any more
        self.assert_idle()
        await self.until(lambda: len(one.client.read()) == len(BIG))
        self.assert_same(one.client.read(), BIG)
        await self.assert_ended(one.inner, one.transport)
        self.assertNotEqual(one.client.ended(), "")

    async def test_close_is_a_clean_end(self) -> None:
        """The peer of a closed connection reads to the end of what was written and meets no error."""
        one = await self.connect()
        one.transport.write(BIG)
        one.transport.loseConnection()
        await self.until(one.client.ended)
        self.assertEqual(one.client.end, "closed")
        self.assert_same(one.client.read(), BIG)
        await self.assert_ended(one.inner, one.transport)

    async def test_abort_in_the_middle(self) -> None:
        """A protocol that gives up while it is read is not read again; its peer sees the end."""
        one = await self.connect()

        def give_up() -> None:
            one.transport.abortConnection()
            self.assert_idle()

        one.inner.act = give_up
        one.client.send(BIG[: READ_BYTES + 1000])
        await self.assert_ended(one.inner, one.transport)
        self.assertEqual(one.inner.reads, 1)
        await self.until(one.client.ended)

    async def test_one_ends_another(self) -> None:
        """A connection that another one ended in the same turn is not read any more."""
        links = [await self.connect() for _ in range(4)]

        def end_others(me: Link) -> None:
            for link in links:
                if link is not me:
                    link.transport.abortConnection()

        for link in links:
            link.inner.act = lambda link=link: end_others(link)  # type: ignore[misc]
            link.client.send(b"x")
        self.read_once(*links)
        self.assertEqual(sum(link.inner.reads for link in links), 1)
        await self.until(lambda: len(self.closed) == 3)
        (left,) = [link for link in links if link.inner.reads]
        left.inner.act = lambda: None
        await self.assert_echoes(left)

    async def test_error_inside_ends_one_connection(self) -> None:
        """A protocol that fails is logged and ends; those read in the same turn, and later, do not feel it."""
        links = [await self.connect() for _ in range(3)]
        links[1].inner.act = lambda: 1 // 0
        for link in links:
            link.client.send(b"x")
        self.read_once(*links)
        self.assertEqual([link.inner.received for link in links], [b"x"] * 3)
        await self.until(lambda: self.closed)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        await self.assert_echoes(links[0], links[2])
        self.assertEqual([len(link.inner.lost) for link in links], [0, 1, 0])

    async def test_numbers_are_used_again(self) -> None:
        """A new connection with the descriptor number of an old one is read as any other."""
        old = [await self.connect() for _ in range(3)]
        numbers = {link.descriptor for link in old}
        epoll = self.poller.fileno()
        old[0].transport.abortConnection()
        old[1].transport.loseConnection()
        old[2].client.close()
        for link in old[:2]:
            await self.until(link.client.ended)
            link.client.close()
        await self.until(lambda: len(self.closed) == 3)
        self.assert_idle()
        self.assertRaises(OSError, os.fstat, epoll)
        new = [await self.connect() for _ in range(4)]
        self.assertTrue(numbers & {link.descriptor for link in new})
        await self.assert_echoes(*new)

    async def test_dead_connection_leaves_its_number_alone(self) -> None:
        """What is done to a connection that is over does not touch the one that has its descriptor number now."""
        one = await self.connect()
        number = one.descriptor
        one.transport.abortConnection()
        await self.until(lambda: self.closed)
        one.client.close()
        new = [await self.connect() for _ in range(3)]
        self.assertIn(number, [link.descriptor for link in new])
        for call in (one.transport.pauseProducing, one.transport.abortConnection, one.transport.resumeProducing):
            call()
            await self.assert_echoes(*new)

    async def test_error_outside_ends_one_connection(self) -> None:
        """A read callback that fails, which is not the protocol's failure, does not end the reading of the others."""
        one = await self.connect()
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        self.addCleanup(self.poller.remove, ours.fileno())

        def fail() -> None:
            ours.recv(1)
            raise RuntimeError("crash")

        told = Told(fail)
        self.poller.add(ours.fileno(), told)
        theirs.send(b"x")
        await self.until(lambda: self.flushLoggedErrors(RuntimeError))
        self.assertEqual([reason.type for reason in told.reasons], [ConnectionLost])
        await self.assert_echoes(one)

    async def test_connection_that_cannot_be_watched(self) -> None:
        """A connection that the poller does not get to watch is read by the reactor, or ended; it does not hang."""

        class Full(MemoryReactorClock):
            def addReader(self, reader: object) -> None:
                raise OSError(ENOSPC, "no more watches")

        watched, self.poller = self.poller, Poller(cast(Any, Full()), Turn(reactor))
        client = Client(self.number)
        self.clients.append(client)
        try:
            await self.until(lambda: self.inners)
            self.inners[0].reply = bytes.upper
            with contextlib.suppress(ConnectionError):
                client.send(b"abc")
            await self.until(lambda: client.read() == b"ABC" or client.ended())
        finally:
            self.flushLoggedErrors(OSError)
            self.poller = watched

    async def test_reactor_stops(self) -> None:
        """A connection hears of the reactor's end as well, though the reactor knows only the poller."""
        one = await self.connect()
        reactor.removeReader(self.poller)  # what ``disconnectAll`` does
        self.poller.connectionLost(Failure(ConnectionLost()))
        await self.until(lambda: one.inner.lost)


class TLSTests(RealCase):
    made: Certificates

    def setUp(self) -> None:
        super().setUp()
        self.made = ensure_certificates(self.mktemp())
        self.context = ServerContext(server_config(self.made), reactor)
        self.gate = HandshakeGate()
        self.far = Recorder()

    def build_transport(self, inner: Scripted) -> DirectTransport:
        return TLSTransport(inner, reactor, self.context.wrap, self.gate, self.closed.append, poller=self.poller)

    async def connect(self) -> tuple[TLSTransport, Scripted, DirectTransport]:
        """The client's end, read by the reactor, then ours."""
        wrap = ClientContext(client_config(self.made), reactor).wrap_for("localhost")
        near = TLSTransport(self.far, reactor, wrap, HandshakeGate())
        factory = ClientFactory()
        factory.buildProtocol = lambda addr: near  # type: ignore[method-assign]
        factory.noisy = False
        reactor.connectTCP("127.0.0.1", self.number, factory)
        self.addCleanup(self.until, lambda: self.far.lost)
        self.addCleanup(near.abortConnection)
        await self.until(lambda: self.far.made and self.inners and self.inners[0].made)
        return near, self.inners[0], self.transports[0]

    async def test_echo(self) -> None:
        """Megabytes go both ways."""
        near, inner, transport = await self.connect()
        inner.reply = bytes.swapcase
        near.write(BIG[: 1 << 20])
        await self.until(lambda: len(self.far.received) == 1 << 20)
        self.assert_same(self.far.received, BIG[: 1 << 20].swapcase())
        self.assertNotIn(transport.transport, reactor.getReaders())

    async def test_pause_and_resume(self) -> None:
        """A protocol that pauses, also while it is read, gets nothing until it resumes."""
        near, inner, transport = await self.connect()
        inner.act = transport.pauseProducing
        near.write(b"abc")
        await self.until(lambda: inner.reads)
        near.write(b"def")
        await self.turns()
        self.assertEqual(inner.received, b"abc")
        transport.resumeProducing()
        await self.until(lambda: inner.received == b"abcdef")

    async def test_peer_says_goodbye(self) -> None:
        """A clean end is told once, after what came before it."""
        near, inner, transport = await self.connect()
        near.write(b"abc")
        near.loseConnection()
        await self.assert_ended(inner, transport)
        self.assertEqual(inner.received, b"abc")

    async def test_peer_vanishes(self) -> None:
        """An end without a goodbye is one as well."""
        near, inner, transport = await self.connect()
        near.abortConnection()
        await self.assert_ended(inner, transport)

    async def test_close_sends_what_is_queued(self) -> None:
        """Closing sends everything that was written before."""
        _, inner, transport = await self.connect()
        transport.write(BIG)
        transport.loseConnection()
        await self.assert_ended(inner, transport)
        await self.until(lambda: self.far.lost)
        self.assert_same(self.far.received, BIG)

    async def test_no_tls(self) -> None:
        """Bytes that are no TLS end the connection; its protocol never heard of it."""
        client = Client(self.number)
        self.clients.append(client)
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        await self.until(client.ended)
        await self.until(lambda: self.closed)
        self.assertEqual((self.inners[0].made, len(self.closed), len(self.gate)), (0, 1, 0))
        self.assert_idle()


class ClientPortTests(TestCase):
    skip = NO_EPOLL
    timeout = 20

    async def test_port_reads_by_a_poller(self) -> None:
        """The client port has one reader for all its connections, and none once it has stopped."""
        port = ClientPort(reactor, FakeGrpc, lambda peer: Recorder(), Turn(reactor))
        address: Any = port.listen("127.0.0.1", 0, None).getHost()
        clients = [Client(address.port) for _ in range(3)]
        readers: list[object] = []
        try:
            for client in clients:
                client.send(PREFACE)
            for _ in range(MOST_TURNS):
                if all(client.read().endswith(PREFACE) for client in clients):
                    break
                await deferLater(reactor, 0.001)
            self.assertEqual([client.read() for client in clients], [b"<settings>" + PREFACE] * 3)
            readers += [reader for reader in reactor.getReaders() if isinstance(reader, Poller)]
            self.assertEqual(len(readers), 1)
        finally:
            await port.stop(0.05)
            for client in clients:
                client.close()
        self.assertNotIn(readers[0], reactor.getReaders())
