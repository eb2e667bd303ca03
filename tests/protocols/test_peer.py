"""Members talking to each other, over a network in memory."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, ServerFactory
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import FakeSocket, Recorder
from tests.protocols.peernet import CLUSTER, Network, answer_later, pieces
from twistedkv.certs import ensure_certificates
from twistedkv.protocols.answers import JSON, Answer
from twistedkv.protocols.msgappv2 import MessageEncoder, StreamKind
from twistedkv.protocols.peer import MAX_REMOTES
from twistedkv.protocols.peerhttp import chunk
from twistedkv.protocols.peerposts import MAX_QUEUED
from twistedkv.protocols.peerstreams import MAX_WAITING, READ_TIMEOUT_S
from twistedkv.protocols.tls import ClientContext, ServerContext, TLSConfig
from twistedkv.raft.messages import ConfState, Entry, Message, MessageType, Snapshot, SnapshotMeta

APPEND, VOTE, HEARTBEAT = MessageType.APPEND, MessageType.VOTE, MessageType.HEARTBEAT


def append(to: int, sender: int, index: int, count: int = 1) -> Message:
    entries = [Entry(3, index + each + 1, b"x" * 100) for each in range(count)]
    return Message(APPEND, to, sender, 3, 3, index, entries, index)


def snapshot(to: int, sender: int) -> Message:
    meta = SnapshotMeta(7, 3, ConfState((to, sender)))
    return Message(MessageType.SNAPSHOT, to, sender, 3, snapshot=Snapshot(meta, b"{}"))


class NetworkCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = Network()
        self.one, self.two = self.network.add(1), self.network.add(2)
        self.first, self.second = self.network.receivers[1], self.network.receivers[2]

    def tearDown(self) -> None:
        for peers in self.network.peers.values():
            stopped = peers.stop()
            self.network.settle()
            self.successResultOf(stopped)
        self.assertEqual(self.network.reactor.getDelayedCalls(), [])

    def sends(self) -> list[int]:
        """System calls of every socket so far."""
        return [each.sends for wire in self.network.wires for each in (wire.client, wire.server)]


class StreamTests(NetworkCase):
    def test_messages_arrive(self) -> None:
        """What one member sends the other receives, appends and the rest, in the order of each stream."""
        self.network.introduce()
        sent = [append(2, 1, 0), Message(HEARTBEAT, 2, 1, 3), append(2, 1, 1, 3), Message(VOTE, 2, 1, 4, 3, 4)]
        self.one.send(sent)
        self.network.settle()
        for kinds in ({APPEND}, {HEARTBEAT, VOTE}):
            expected = [message for message in sent if message.type in kinds]
            self.assertEqual([message for message in self.second.messages if message.type in kinds], expected)
        self.assertEqual(self.second.messages.__len__(), 4)
        self.assertEqual(self.network.observers[2].active, {(1, kind) for kind in StreamKind})
        self.assertEqual(self.network.observers[1].failed_sends, 0)

    def test_one_write_a_stream(self) -> None:
        """All that is sent to a peer at once leaves in one write a stream, before ``send`` returns."""
        self.network.introduce()
        before = self.sends()
        self.one.send([append(2, 1, index) for index in range(20)] + [Message(HEARTBEAT, 2, 1, 3)] * 5)
        self.assertEqual(sum(self.sends()) - sum(before), 2)

    def test_posts_until_there_are_streams(self) -> None:
        """Before the other has dialled, messages are posted."""
        self.one.set_peer(2, [self.network.url(2)])  # two knows nobody, so nobody reads from one
        self.one.send([append(2, 1, 0), Message(HEARTBEAT, 2, 1, 3)])
        self.network.settle()
        self.assertEqual({message.type for message in self.second.messages}, {APPEND, HEARTBEAT})

    def test_who_is_posted_to_can_answer(self) -> None:
        """A member that knows nobody yet answers the sender at the address that it gave."""
        self.one.set_peer(2, [self.network.url(2)])
        self.one.send([Message(HEARTBEAT, 2, 1, 3)])
        self.network.settle()
        self.two.send([Message(MessageType.HEARTBEAT_RESPONSE, 1, 2, 3)])
        self.network.settle()
        self.assertEqual([message.type for message in self.first.messages], [MessageType.HEARTBEAT_RESPONSE])

    def test_streams_outlive_silence(self) -> None:
        """Links that carry nothing are kept alive, and probed."""
        self.network.introduce()
        dials = len(self.network.dials)
        self.network.run(30)
        self.assertEqual(len(self.network.dials), dials + 2)  # the probes' own connections
        self.assertEqual(self.network.observers[1].active, {(2, kind) for kind in StreamKind})
        trips = self.network.observers[1].trips
        self.assertGreaterEqual(len(trips), 6)
        self.assertTrue(all(abs(drift_s) < 0.2 for _, _, drift_s in trips))
        self.assertEqual((self.first.messages, self.second.messages), ([], []))
        self.assertEqual(self.one.active_since(2), 0.0)

    def test_silent_peer_is_given_up(self) -> None:
        """A stream without even a sign of life is cut and dialled again."""
        self.network.introduce()
        wires, self.network.wires = self.network.wires, []  # nothing is carried any more
        self.network.partition(2)
        self.network.reactor.pump([0.5] * 13)
        for wire in wires:
            wire.client.turn()
        self.network.run(1)
        self.assertEqual(self.network.observers[1].active, set())
        self.assertIsNone(self.one.active_since(2))
        self.network.cut.clear()
        self.network.run(2)
        self.assertEqual(self.network.observers[1].active, {(2, kind) for kind in StreamKind})
        self.assertGreater(READ_TIMEOUT_S, 4)

    def test_lost_streams_come_back(self) -> None:
        """When connections break Raft hears of it, and streams are there again within a second."""
        self.network.introduce()
        self.network.break_all()
        self.assertIn(2, self.first.lost)
        self.network.run(1)
        self.one.send([append(2, 1, 0)])
        self.network.settle()
        self.assertEqual(len(self.second.messages), 1)
        self.assertEqual(self.network.observers[2].active, {(1, kind) for kind in StreamKind})

    def test_redials_are_paced(self) -> None:
        """A peer that is down is dialled at most ten times a second on each stream, and less often in the long run."""
        self.one.set_peer(2, [self.network.url(2)])
        self.network.partition(2)
        self.network.run(1)
        self.assertLessEqual(len(self.network.dials), 2 * 10)
        before = len(self.network.dials)
        self.network.run(10)
        self.assertLessEqual(len(self.network.dials) - before, 2 * 11 + 5)  # and some probes

    def test_other_url_is_tried(self) -> None:
        """A member with several URLs is reached by the one that works."""
        self.network.partition(3)
        self.one.set_peer(2, [self.network.url(3), self.network.url(2)])
        self.two.set_peer(1, [self.network.url(1)])
        self.network.run(1)
        self.assertEqual(self.network.observers[1].active, {(2, kind) for kind in StreamKind})

    def test_peer_that_does_not_read(self) -> None:
        """For a peer that does not read a bounded number waits; what is beyond is dropped, and Raft is told."""
        self.network.introduce()
        for wire in self.network.wires:
            wire.client.room = wire.server.room = 0
        self.one.send([append(2, 1, index) for index in range(MAX_WAITING)])
        self.assertEqual(self.first.lost, [])
        self.one.send([append(2, 1, index) for index in range(MAX_WAITING + 10)])
        self.assertEqual(self.first.lost, [2])
        self.assertGreaterEqual(self.network.observers[1].failed_sends, 10)
        for wire in self.network.wires:
            wire.client.room = wire.server.room = 1 << 40
        self.network.settle()
        received = [message.index for message in self.second.messages]
        self.assertEqual(received[:MAX_WAITING], list(range(MAX_WAITING)))

    def test_deaf_peer_is_cut(self) -> None:
        """A peer that reads nothing for five seconds loses its stream."""
        self.network.introduce()
        for wire in self.network.wires:
            wire.server.room = 0
        self.one.send([append(2, 1, 0)])
        self.network.run(7)
        self.assertIn(2, self.first.lost)

    def test_removed_peer_is_left_alone(self) -> None:
        """After ``remove_peer`` nothing of the link is left, and nothing is sent."""
        self.network.introduce()
        self.one.remove_peer(2)
        self.network.settle()
        self.one.send([append(2, 1, 0)])
        self.network.run(1)
        self.assertEqual(self.second.messages, [])
        self.assertFalse(self.one.knows(2))

    def test_new_urls_replace_old_ones(self) -> None:
        """The same URLs again change nothing; others are dialled."""
        self.network.introduce()
        dials = len(self.network.dials)
        self.one.set_peer(2, [self.network.url(2)])
        self.network.settle()
        self.assertEqual(len(self.network.dials), dials)
        self.network.add(3)
        self.one.set_peer(2, [self.network.url(3)])
        self.network.settle()
        self.assertEqual(self.network.dials[-1], 3)

    def test_it_is_told_of_its_removal(self) -> None:
        """A member whose stream is refused with 410 learns that it was removed."""
        self.first.removed_members.add(2)
        self.two.set_peer(1, [self.network.url(1)])
        self.network.settle()
        self.assertGreaterEqual(self.second.told_removed, 1)
        dials = len(self.network.dials)
        self.network.run(1)
        self.assertEqual(len(self.network.dials), dials)

    def test_removed_member_is_not_heard(self) -> None:
        """A post from a removed member is refused, which tells it so."""
        self.first.removed_members.add(2)
        self.two.add_remote(1, [self.network.url(1)])
        self.two.send([Message(VOTE, 1, 2, 9)])
        self.network.settle()
        self.assertEqual(self.first.messages, [])
        self.assertEqual((self.second.told_removed, self.second.lost), (1, [1]))

    def test_another_cluster_is_not_heard(self) -> None:
        """Members of two clusters that were given each other's addresses exchange nothing."""
        self.network.add(3, cluster=0xC2)
        self.one.set_peer(3, [self.network.url(3)])
        self.network.peers[3].set_peer(1, [self.network.url(1)])
        self.network.settle()
        self.one.send([Message(VOTE, 3, 1, 9)])
        self.network.run(1)
        self.assertEqual(self.network.receivers[3].messages, [])
        self.assertEqual(self.network.observers[3].active | self.network.observers[1].active, set())
        self.assertIn(3, self.first.lost)

    def test_full_pipeline_drops(self) -> None:
        """Without streams no more than a few posts wait; what is beyond is dropped and Raft is told."""
        self.one.set_peer(2, [self.network.url(2)])
        self.one.send([Message(HEARTBEAT, 2, 1, 3)] * (MAX_QUEUED + 10))
        self.assertEqual(self.first.lost, [2])
        self.network.settle()
        self.assertEqual(len(self.second.messages), MAX_QUEUED + 4)

    def test_lost_posts_are_told(self) -> None:
        """A post that reaches nobody is reported."""
        self.network.partition(2)
        self.one.set_peer(2, [self.network.url(2)])
        self.one.send([Message(HEARTBEAT, 2, 1, 3)])
        self.network.settle()
        self.assertEqual(self.first.lost, [2])

    def test_remotes_are_bounded(self) -> None:
        """Strangers cannot make us remember any number of addresses, nor any that are none."""
        self.one.add_remote(99, ["nonsense"])
        for stranger in range(100, 100 + 2 * MAX_REMOTES):
            self.one.add_remote(stranger, ["http://127.0.0.1:9"])
        self.assertEqual(len(self.one._remotes), MAX_REMOTES)

    def test_clock_drift_is_seen(self) -> None:
        """A peer whose clock is off is found by probing."""
        self.network.introduce()
        self.two.reactor = Ahead(self.network.reactor)
        self.network.run(10)
        self.assertAlmostEqual(self.network.observers[1].trips[-1][2], 100, delta=0.5)


class Ahead:
    """A clock that is 100 s ahead of another."""

    def __init__(self, clock: object) -> None:
        self._clock = clock

    def seconds(self) -> float:
        return float(self._clock.seconds()) + 100  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._clock, name)


class SnapshotTests(NetworkCase):
    def test_snapshot_arrives_whole(self) -> None:
        """The database comes through as it was, and the sender learns that it is there."""
        self.network.introduce()
        self.one.send_snapshot(snapshot(2, 1), pieces(50, 100_000), 0xABCDEF)
        self.network.settle()
        (sink,) = self.second.sinks
        self.assertEqual(sink.content, b"".join(pieces(50, 100_000)()))
        self.assertEqual(self.second.messages, [snapshot(2, 1)])
        self.assertEqual(self.second.checksums, [0xABCDEF])
        self.assertEqual(self.first.snapshots, [(2, True)])
        self.assertEqual(self.network.observers[1].snapshots, [("sending", 2, None), ("sent", 2, True)])
        self.assertEqual(self.network.observers[2].snapshots, [("receiving", 1, None), ("received", 1, True)])

    def test_slow_disk_slows_the_sender(self) -> None:
        """While the receiver's sink is busy the sender reads no further, so neither holds much in memory."""
        self.network.introduce()
        read: list[int] = []
        self.second.slow_sinks = True
        parts = pieces(200, 100_000)

        def counted() -> object:
            for part in parts():
                read.append(len(part))
                yield part

        for wire in self.network.wires:
            wire.client.room = 1 << 40
        self.one.send_snapshot(snapshot(2, 1), counted, 0xABCDEF)  # type: ignore[arg-type]
        self.network.reactor.advance(0)
        self.network._connect()
        post = self.network.wires[-1]
        post.client.room = 500_000
        self.network.settle()
        self.assertLess(sum(read), 2_500_000)  # of 20 MB
        (sink,) = self.second.sinks
        self.assertLess(len(sink.content), 500_000)
        post.client.room = 1 << 40
        for _ in range(1000):
            sink.taken()
            self.network.settle_once()
            self.network.reactor.advance(0)
        self.assertEqual(self.first.snapshots, [(2, True)])
        self.assertEqual(sink.content, b"".join(parts()))

    def test_failure_to_save_is_told(self) -> None:
        """A sink that fails is aborted, and the sender is told."""
        self.network.introduce()
        self.second.slow_sinks = True
        self.one.send_snapshot(snapshot(2, 1), pieces(3, 1000), 0xABCDEF)
        self.network.settle()
        (sink,) = self.second.sinks
        assert sink.waiting is not None
        sink.waiting.errback(OSError("no space left on device"))
        self.network.settle()
        self.assertTrue(sink.aborted)
        self.assertEqual(self.first.snapshots, [(2, False)])
        self.assertEqual(self.second.messages, [])

    def test_cut_snapshot_is_aborted(self) -> None:
        """A connection that breaks in the middle leaves no half snapshot; both sides know."""
        self.network.introduce()
        self.second.slow_sinks = True
        self.one.send_snapshot(snapshot(2, 1), pieces(300, 100_000), 0xABCDEF)
        self.network.settle()
        self.network.break_all()
        self.network.settle()
        self.assertTrue(self.second.sinks[0].aborted)
        self.assertEqual(self.first.snapshots, [(2, False)])
        self.assertEqual(self.second.messages, [])

    def test_new_url_is_a_failed_delivery(self) -> None:
        """A member that is found at another URL while a snapshot is on its way does not get it; the sender knows."""
        self.network.introduce()
        self.second.slow_sinks = True
        self.one.send_snapshot(snapshot(2, 1), pieces(50, 100_000), 0xABCDEF)
        self.network.settle()
        self.one.set_peer(2, [self.network.url(2)])  # the same as before: it goes on
        self.network.settle()
        self.assertEqual(self.first.snapshots, [])
        self.one.set_peer(2, [self.network.url(3), self.network.url(2)])
        self.network.settle()
        self.assertEqual(self.first.snapshots, [(2, False)])
        self.assertEqual(self.second.messages, [])

    def test_unreadable_database_is_a_failed_delivery(self) -> None:
        """If the sender cannot read its own database, the receiver is not given a part of it as a whole."""

        def broken() -> object:
            yield b"x" * 1000
            raise OSError("input/output error")

        self.network.introduce()
        self.one.send_snapshot(snapshot(2, 1), broken, 0xABCDEF)  # type: ignore[arg-type]
        self.network.settle()
        self.assertEqual(self.first.snapshots, [(2, False)])
        self.assertTrue(self.second.sinks[0].aborted)
        self.assertEqual(self.second.messages, [])

    def test_unreachable_and_unknown_members_fail(self) -> None:
        """A snapshot for nobody fails; so does one for a member that is down."""
        self.network.partition(2)
        self.one.set_peer(2, [self.network.url(2)])
        self.one.send_snapshot(snapshot(2, 1), pieces(1, 1), 0xABCDEF)
        self.one.send_snapshot(snapshot(9, 1), pieces(1, 1), 0xABCDEF)
        self.network.settle()
        self.assertEqual(sorted(self.first.snapshots), [(2, False), (9, False)])


class RawStreamTests(NetworkCase):
    """A peer that speaks, but not as members do."""

    def open(self, kind: StreamKind) -> FakeSocket:
        """The socket on which member 1 expects a stream from member 2, where a fake answers."""
        script = Recorder(lambda data: HEAD if b"GET /raft/stream/%b/" % kind.value.encode() in data else b"")
        self.network.reactor.tcpServers.clear()
        self.network.reactor.listenTCP(2, Scripted(script))
        self.one.set_peer(2, [self.network.url(2)])
        self.network.reactor.advance(0)
        self.network._connect()
        self.network.settle()
        sockets = [wire.server for wire in self.network.wires if wire.server.connected]
        path = b"/%b/" % kind.value.encode()
        return next(each for each in sockets if isinstance(each.protocol, Recorder) and path in each.protocol.received)

    def test_garbage_on_a_stream_cuts_it(self) -> None:
        """Bytes that are no frames, or frames from someone else, end the connection; nothing reaches Raft."""
        other = Message(HEARTBEAT, 1, 3, 9)
        for kind, data in (
            (StreamKind.APPENDS, b"\x07garbage"),
            (StreamKind.MESSAGES, b"\xff" * 16),
            (StreamKind.MESSAGES, MessageEncoder().encode(other)),
            (StreamKind.MESSAGES, MessageEncoder().encode(snapshot(1, 2))),
        ):
            socket = self.open(kind)
            socket.write(chunk(data))
            self.network.settle()
            self.assertFalse(socket.connected, data)
            self.one.remove_peer(2)
            self.network.settle()
        self.assertEqual(self.first.messages, [])
        self.assertGreaterEqual(self.network.observers[1].failed_receives, 4)

    def test_forwarded_requests_keep_their_sender(self) -> None:
        """A proposal, a read or a wish for another leader may come from a third member by way of the stream's."""
        socket = self.open(StreamKind.MESSAGES)
        kinds = (MessageType.PROPOSE, MessageType.READ_INDEX, MessageType.TRANSFER_LEADER)
        for kind in kinds:
            socket.write(chunk(MessageEncoder().encode(Message(kind, 1, 3))))
        self.network.settle()
        self.assertEqual([message.type for message in self.first.messages], list(kinds))

    def test_message_for_another_is_dropped(self) -> None:
        """What is not addressed to us does not reach Raft, and the stream goes on."""
        socket = self.open(StreamKind.MESSAGES)
        for to in (7, 1):
            socket.write(chunk(MessageEncoder().encode(Message(HEARTBEAT, to, 2, 3))))
        self.network.settle()
        self.assertEqual([message.to for message in self.first.messages], [1])


HEAD = (
    b"HTTP/1.1 200 OK\r\nX-Server-Version: 3.5.1\r\nX-Etcd-Cluster-ID: %x\r\nTransfer-Encoding: chunked\r\n\r\n"
    % CLUSTER
)


class Scripted(ServerFactory):
    """Makes a recorder with the same script for each connection."""

    def __init__(self, script: Recorder) -> None:
        self._script = script

    def buildProtocol(self, addr: object) -> Recorder:
        return Recorder(self._script.reply)


class PathTests(NetworkCase):
    def ask(self, request: bytes) -> bytes:
        """What member 1 answers on a connection of its own."""
        client = Recorder()
        self.network.reactor.connectTCP("127.0.0.1", 1, Only(client))
        self.network._connect()
        assert client.transport is not None
        client.transport.write(request)
        self.network.settle()
        self.client = client
        return client.received

    def test_plain_paths(self) -> None:
        """Members, version and probe are answered, several on one connection."""
        answers = self.ask(
            b"GET /members HTTP/1.1\r\nHost: x\r\n\r\nGET /version HTTP/1.1\r\nHost: x\r\n\r\n"
            b"GET /raft/probing HTTP/1.1\r\nHost: x\r\n\r\nGET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        self.assertEqual(answers.count(b"HTTP/1.1 200 OK"), 3)
        self.assertIn(b"X-Etcd-Cluster-Id: c1", answers)
        self.assertIn(b'{"OK":true,"Now":"1970-01-01T00:00:00Z"}\n', answers)
        self.assertTrue(answers.endswith(b"404 page not found\n"))

    def test_injected_paths(self) -> None:
        """Further paths go to who was injected, with their bodies; a request waits for the answer before it."""
        asked: list[tuple[str, str, bytes, Deferred[Answer]]] = []
        self.one.extra = answer_later(asked)
        request = b"POST /leases HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
        chunked = (
            b"GET /members/hashkv?a=b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n"
        )
        self.ask(request + chunked)
        self.assertEqual([each[:3] for each in asked], [("POST", "/leases", b"abc")])
        asked[0][3].callback(Answer(200, JSON, b"first"))
        self.network.settle()
        self.assertEqual(asked[1][:3], ("GET", "/members/hashkv", b"de"))
        asked[1][3].errback(ValueError("crash"))
        self.network.settle()
        self.assertIn(b"first", self.client.received)
        self.assertIn(b"HTTP/1.1 500", self.client.received)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_malformed_requests_are_refused(self) -> None:
        """What two servers could read differently is answered with 400 and the end of the connection."""
        for request in (
            b"nonsense\r\n\r\n",
            b"POST /raft HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"GET /members HTTP/1.1\r\n" + b"A: b\r\n" * 5000,
            b"POST /leases HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ):
            self.one.extra = answer_later([])
            self.assertRegex(self.ask(request), rb"^HTTP/1.1 4\d\d ")
            self.assertEqual(len(self.client.lost), 1, request)

    def test_endless_body_is_cut(self) -> None:
        """A body that is refused is read no further than is polite."""
        head = b"POST /raft HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.assertIn(b"412 Precondition Failed", self.ask(head + chunk(bytes(100_000)) * 5))
        self.assertEqual(len(self.client.lost), 1)

    def test_idle_and_slow_connections_are_closed(self) -> None:
        """A request that does not end in a minute, and a connection without one for five, are cut."""
        self.ask(b"GET /memb")
        self.network.run(80)
        self.assertEqual(len(self.client.lost), 1)
        self.ask(b"GET /members HTTP/1.1\r\nHost: x\r\n\r\n")
        self.network.run(290)
        self.assertEqual(len(self.client.lost), 0)
        self.network.run(30)
        self.assertEqual(len(self.client.lost), 1)


class Only(ClientFactory):
    """Gives one protocol."""

    def __init__(self, protocol: Recorder) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: object) -> Recorder:
        return self._protocol


class SecureTests(SynchronousTestCase):
    def test_mutual_tls(self) -> None:
        """Over TLS with certificates of one authority members talk as they do without; others get nowhere."""
        made = ensure_certificates(self.mktemp())
        network = Network()
        config = TLSConfig(str(made.peer.certificate), str(made.peer.key), str(made.ca.certificate), True)
        server = ServerContext(config, network.reactor, ("http/1.1",))
        network.tls = (server, ClientContext(config, network.reactor, ("http/1.1",)))
        network.add(1)
        network.add(2)
        refused = network.add(3, allows=lambda transport: transport.common_name != "twistedkv-peer")
        foreign = ensure_certificates(self.mktemp())
        config = TLSConfig(str(foreign.peer.certificate), str(foreign.peer.key), str(foreign.ca.certificate), True)
        served = ServerContext(config, network.reactor, ("http/1.1",))
        network.tls = (served, ClientContext(config, network.reactor, ("http/1.1",)))
        network.add(4)
        network.introduce()
        network.peers[1].send([append(2, 1, 0), Message(VOTE, 3, 1, 9), Message(VOTE, 4, 1, 9)])
        network.peers[4].send([Message(VOTE, 1, 4, 9), Message(VOTE, 2, 4, 9)])
        refused.send([Message(VOTE, 1, 3, 9)])
        network.run(1)
        self.assertEqual([message.type for message in network.receivers[2].messages], [APPEND])
        self.assertEqual(network.receivers[1].messages, [])
        self.assertEqual(network.receivers[3].messages, [])  # it does not allow our name
        self.assertEqual(network.observers[4].active, set())
        for peers in network.peers.values():
            stopped = peers.stop()
            network.settle()
            self.successResultOf(stopped)
        self.assertEqual(network.reactor.getDelayedCalls(), [])
