"""All other members of the cluster, as one member reaches them and is reached by them: etcd's rafthttp.

Every pair of members keeps four streams, two each way, and who reads a stream is who dials it. Appends go out on one
kind, everything else on the other; until a stream is there a message is posted. Nothing here waits: what cannot leave
is dropped, and Raft, which is told, sends it again.

Source: etcd ``server/etcdserver/api/rafthttp/{transport,peer}.go``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import orjson
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.optiontypes import Url, parse_url
from twistedkv.peering import Reply
from twistedkv.protocols.msgappv2 import StreamKind, encoder_of
from twistedkv.protocols.peerclient import Allows, Asker, Dialler, UrlPicker
from twistedkv.protocols.peerheads import PROBING_PATH, Identity, get_request, plain_request
from twistedkv.protocols.peerposts import Pipeline, SnapshotPost
from twistedkv.protocols.peerserver import Extra, PeerPort
from twistedkv.protocols.peerstreams import ALIVE_INTERVAL_S, StreamReader, StreamWriter
from twistedkv.protocols.receiver import NoObserver, PeerObserver, Receiver
from twistedkv.protocols.tls import ClientContext, ServerContext
from twistedkv.raft.messages import Message, MessageType
from twistedkv.raft.wire import EntryEncoder

TICK_S: Final = ALIVE_INTERVAL_S / 2  # how late a silent or deaf peer may be noticed
PROBE_INTERVAL_S: Final = 4.0  # etcd rafthttp/transport.go, ConnReadTimeout - time.Second
MAX_ASKING: Final = 64  # questions to one peer at a time, each on a connection of its own
KEPT_ASKERS: Final = 4  # connections that are kept between questions
MAX_REMOTES: Final = 64  # senders to answer that are no members yet
CLOCK_DRIFT_WARNING_S: Final = 1.0  # etcd rafthttp/probing_status.go, clock difference

_log = Logger()


class Peers:
    """The transport of one member.

    Args:
        own_urls: peer URLs by which others reach us.
        server_tls: for https URLs of :meth:`listen`; made with ``http/1.1`` as the only protocol.
        client_tls: for https URLs of peers; likewise.
        extra: answers paths of the peer port that are not Raft's.
        allows: a last look at a peer whose certificate was verified, on connections of either direction.
    """

    def __init__(
        self,
        reactor: Any,
        me: int,
        cluster_id: int,
        server_version: str,
        own_urls: Sequence[str],
        server_tls: ServerContext | None,
        client_tls: ClientContext | None,
        receiver: Receiver,
        observer: PeerObserver | None = None,
        *,
        extra: Extra | None = None,
        allows: Allows | None = None,
    ) -> None:
        self.reactor = reactor
        self.identity = Identity(me, cluster_id, server_version, tuple(own_urls))
        self.receiver = receiver
        self.observer: PeerObserver = observer or NoObserver()
        self.extra = extra
        self._entries = EntryEncoder()
        self._dialler = Dialler(reactor, client_tls, allows)
        self._port = PeerPort(self, server_tls, allows)
        self._links: dict[int, PeerLink] = {}
        self._remotes: dict[int, Pipeline] = {}
        self._ticking: IDelayedCall | None = None
        self._stopped = False

    # --- who there is ------------------------------------------------------------------------------------------------

    def listen(self, urls: Sequence[str]) -> list[IListeningPort]:
        """Open the peer port.

        Raises:
            ValueError: a URL is none, or is https and there is no certificate.
            CertificateError: the certificate files cannot be used.
            twisted.internet.error.CannotListenError: an address is taken.
        """
        self._begin_ticking()
        return [self._port.listen(parse_url(url)) for url in urls]

    def set_peer(self, member_id: int, urls: Sequence[str]) -> None:
        """Talk to this member from now on, or by other URLs than before. Dialling begins at once.

        Raises:
            ValueError: there is no URL, or one that is none.
        """
        parsed = _parse_urls(urls)
        if self._stopped or member_id == self.identity.member_id:
            return
        link = self._links.get(member_id)
        if link is not None and link.urls == parsed:
            return
        if link is not None and link.sends_snapshot:  # which ends with its link: Raft has to send another one
            self.reactor.callLater(0, self.receiver.snapshot_sent, member_id, False)
        self.remove_peer(member_id)
        self._links[member_id] = link = PeerLink(self, self._dialler, self._entries, member_id, parsed)
        self._begin_ticking()
        link.start()

    def remove_peer(self, member_id: int) -> None:
        """Talk to this member no more; nothing happens if it is none of our peers."""
        remote = self._remotes.pop(member_id, None)
        if remote is not None:
            remote.stop()
        link = self._links.pop(member_id, None)
        if link is not None:
            link.stop()

    def add_remote(self, member_id: int, urls: Sequence[str]) -> None:
        """Be able to answer someone who is not a peer yet, by posts alone; :meth:`set_peer` makes it one."""
        if self._stopped or member_id in self._links or member_id in self._remotes or not urls:
            return
        if member_id == self.identity.member_id or len(self._remotes) >= MAX_REMOTES:
            return
        try:
            parsed = _parse_urls(urls)
        except ValueError as error:
            _log.warn("{member:x} gives an address that is none: {error}", member=member_id, error=error)
            return
        self._remotes[member_id] = Pipeline(
            self._dialler,
            self.identity,
            member_id,
            UrlPicker(parsed),
            self.receiver,
            self.observer,
            self._entries,
            _nothing,
        )

    def knows(self, member_id: int) -> bool:
        """Whether this is a peer."""
        return member_id in self._links

    def active_since(self, member_id: int) -> float | None:
        """The time since which this peer was heard of without a break; ``None`` if it is not heard of, or no peer."""
        link = self._links.get(member_id)
        return None if link is None else link.active_since_s

    # --- messages ----------------------------------------------------------------------------------------------------

    def send(self, messages: Sequence[Message]) -> None:
        """Send what Raft has to say, all that goes to one peer in one write a stream.

        Never waits. What has to be dropped is told by :meth:`Receiver.unreachable` before this returns. A message of
        type SNAPSHOT goes by :meth:`send_snapshot` instead, and one to nobody that is known is dropped.
        """
        by_peer: dict[int, list[Message]] = {}
        for message in messages:
            if message.to in by_peer:
                by_peer[message.to].append(message)
            else:
                by_peer[message.to] = [message]
        for member_id, batch in by_peer.items():
            link = self._links.get(member_id)
            if link is not None:
                link.send(batch)
            elif member_id in self._remotes:
                remote = self._remotes[member_id]
                for message in batch:
                    if not remote.send(message):
                        self._dropped(member_id, 1)

    def send_snapshot(self, message: Message, chunks: Callable[[], Iterator[bytes]], crc32c: int) -> None:
        """Deliver a snapshot; what comes of it is told by :meth:`Receiver.snapshot_sent`.

        Args:
            message: of type SNAPSHOT.
            chunks: gives the database in parts; called when the peer is connected, read as fast as the peer takes
                it. An exception in it is a failed delivery.
            crc32c: of the whole database.
        """
        link = self._links.get(message.to)
        if link is None:
            self.reactor.callLater(0, self.receiver.snapshot_sent, message.to, False)
        else:
            link.send_snapshot(message, chunks, crc32c)

    def ask(
        self, member_id: int, method: str, path: str, body: bytes = b"", content_type: str = "", timeout_s: float = 5.0
    ) -> Deferred[Reply]:
        """Ask a peer something else. Fails if there is no answer in time, no such peer, or too much asked of it."""
        link = self._links.get(member_id)
        if link is None:
            return fail(LookupError(f"{member_id:x} is no peer of ours"))
        return link.ask(partial(plain_request, method, path, body, content_type), timeout_s)

    def attach(self, member_id: int, kind: StreamKind, transport: Any) -> None:
        """A peer has dialled for a stream from us."""
        self._links[member_id].attach(kind, transport)

    def stop(self) -> Deferred[None]:
        """Close the port and all connections. Fires when nothing is left of them."""
        self._stopped = True
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        for member_id in (*self._links, *self._remotes):
            self.remove_peer(member_id)
        return Deferred.fromCoroutine(self._port.stop())

    def _dropped(self, member_id: int, count: int) -> None:
        for _ in range(count):
            self.observer.send_failed(member_id)
        self.receiver.unreachable(member_id)

    def _begin_ticking(self) -> None:
        if self._ticking is None and not self._stopped:
            self._ticking = self.reactor.callLater(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = self.reactor.callLater(TICK_S, self._tick)
        now_s = self.reactor.seconds()
        for link in list(self._links.values()):
            link.tick(now_s)


class PeerLink:
    """Everything between us and one peer.

    Args:
        peers: whose identity, receiver and observer count.
        entries: shared by the streams of all peers.
    """

    def __init__(
        self, peers: Peers, dialler: Dialler, entries: EntryEncoder, member_id: int, urls: tuple[Url, ...]
    ) -> None:
        self.urls = urls
        self.active_since_s: float | None = None
        self._reactor = peers.reactor
        self._identity = identity = peers.identity
        self._receiver = receiver = peers.receiver
        self._observer = observer = peers.observer
        self._dialler = dialler
        self._entries = entries
        self._member_id = member_id
        self._picker = picker = UrlPicker(urls)
        self._writers: dict[StreamKind, StreamWriter] = {}
        self._readers = tuple(
            StreamReader(dialler, identity, member_id, kind, picker, receiver, observer, self._heard)
            for kind in StreamKind
        )
        self._pipeline = Pipeline(dialler, identity, member_id, picker, receiver, observer, entries, self._alive)
        self._snapshots: set[SnapshotPost] = set()
        self._prober = Asker(dialler, UrlPicker(urls))
        self._askers: list[Asker] = []  # that have nothing to ask
        self._asking: set[Asker] = set()
        self._probe_s = peers.reactor.seconds() + PROBE_INTERVAL_S  # when to ask next

    @property
    def sends_snapshot(self) -> bool:
        """Whether a snapshot is on its way."""
        return bool(self._snapshots)

    def start(self) -> None:
        """Dial."""
        for reader in self._readers:
            reader.start()

    def stop(self) -> None:
        """Close everything."""
        for reader in self._readers:
            reader.stop()
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        self._pipeline.stop()
        self._prober.close()
        for asker in (*self._askers, *self._asking):
            asker.close()
        for snapshot in self._snapshots:
            snapshot.stop()
            self._observer.snapshot_sent(self._member_id, False)
        self._snapshots.clear()

    def send(self, messages: list[Message]) -> None:
        """Send by the way that is open: appends by theirs, the rest by the other one, by posts if there is none."""
        appends = self._writers.get(StreamKind.APPENDS)
        others = self._writers.get(StreamKind.MESSAGES)
        if appends is not None:
            append = MessageType.APPEND
            self._send_by(appends, [message for message in messages if message.type is append])
            messages = [message for message in messages if message.type is not append]
        elif others is not None:
            self._note_appends(messages)
        self._send_by(others, messages)

    def _send_by(self, writer: StreamWriter | None, messages: list[Message]) -> None:
        if not messages:
            return
        if writer is not None:
            dropped = writer.send(messages)
        else:
            dropped = sum(not self._pipeline.send(message) for message in messages)
        if dropped:
            self._dropped(dropped)

    def send_snapshot(self, message: Message, chunks: Callable[[], Iterator[bytes]], crc32c: int) -> None:
        """Deliver a snapshot on a connection of its own."""
        url = self._picker.picked
        post = SnapshotPost(self._dialler, self._identity, url, message, chunks, crc32c, self._snapshot_done)
        self._snapshots.add(post)
        self._observer.snapshot_sending(self._member_id)
        post.start()

    def ask(self, request: Callable[[Url], bytes], timeout_s: float) -> Deferred[Reply]:
        """Ask the peer something; see :meth:`Peers.ask`."""
        if len(self._asking) >= MAX_ASKING:
            return fail(ConnectionError(f"{self._member_id:x} owes {MAX_ASKING} answers already"))
        asker = self._askers.pop() if self._askers else Asker(self._dialler, UrlPicker(self.urls))
        self._asking.add(asker)

        def over(result: Any) -> Any:
            self._asking.discard(asker)
            if len(self._askers) < KEPT_ASKERS:
                self._askers.append(asker)
            else:
                asker.close()
            return result

        return asker.ask(request, timeout_s).addBoth(over)

    def attach(self, kind: StreamKind, transport: Any) -> None:
        """Write to the peer over ``transport``; a former stream of this kind is one that the peer has given up."""
        former = self._writers.pop(kind, None)
        if former is not None:
            former.close()
        observer, member = self._observer, self._member_id
        sent = partial(observer.appends_written, member) if kind is StreamKind.APPENDS else self._others_written
        encoder = encoder_of(kind, self._entries)
        writer = StreamWriter(
            transport, encoder, self._reactor.seconds(), sent, observer.clock_s, partial(self._lost, kind)
        )
        if writer.open:
            self._writers[kind] = writer
            _log.info("writing {kind} to {member:x}", kind=kind.value, member=self._member_id)
            for reader in self._readers:
                reader.hurry()

    def tick(self, now_s: float) -> None:
        """Keep links alive, notice those that are not, and probe."""
        for writer in list(self._writers.values()):
            writer.tick(now_s)
        for reader in self._readers:
            reader.tick(now_s)
        if now_s >= self._probe_s and not self._prober.busy:
            self._probe_s = now_s + PROBE_INTERVAL_S
            probe = self._prober.ask(partial(get_request, PROBING_PATH))
            probe.addCallbacks(self._probed, _no_answer, callbackArgs=(now_s,))
            probe.addErrback(lambda failure: _log.failure("probing a peer", failure))

    def _others_written(self, size: int, count: int, seconds: float) -> None:
        self._observer.sent_bytes(self._member_id, size)

    def _note_appends(self, messages: list[Message]) -> None:
        """Some appends go on the other stream, as long as theirs is not there."""
        appends = [message for message in messages if message.type is MessageType.APPEND]
        if appends:
            size = sum(len(entry.data) for message in appends for entry in message.entries)
            self._observer.appends_sent(self._member_id, size, len(appends))

    def _lost(self, kind: StreamKind) -> None:
        self._writers.pop(kind, None)
        _log.info("lost the {kind} stream to {member:x}", kind=kind.value, member=self._member_id)
        self._receiver.unreachable(self._member_id)  # what was on its way may be lost

    def _dropped(self, count: int) -> None:
        for _ in range(count):
            self._observer.send_failed(self._member_id)
        self._receiver.unreachable(self._member_id)

    def _snapshot_done(self, post: SnapshotPost, ok: bool) -> None:
        self._snapshots.discard(post)
        self._observer.snapshot_sent(self._member_id, ok)
        self._receiver.snapshot_sent(self._member_id, ok)

    def _heard(self) -> None:
        if not any(reader.active for reader in self._readers):
            self.active_since_s = None
        else:
            self._alive()

    def _alive(self) -> None:
        if self.active_since_s is None:
            self.active_since_s = self._reactor.seconds()

    def _probed(self, reply: Reply, asked_s: float) -> None:
        now_s = self._reactor.seconds()
        rtt_s = now_s - asked_s
        try:
            theirs_s = datetime.fromisoformat(orjson.loads(reply.body)["Now"]).timestamp()
        except (ValueError, KeyError, TypeError):
            _log.warn("{member:x} does not answer a probe as members do", member=self._member_id)
            return
        drift_s = theirs_s - (asked_s + rtt_s / 2)
        if abs(drift_s) >= CLOCK_DRIFT_WARNING_S:
            _log.warn("the clock of {member:x} is {drift:+.1f} s away from ours", member=self._member_id, drift=drift_s)
        self._observer.round_trip(self._member_id, rtt_s, drift_s)


def _parse_urls(urls: Sequence[str]) -> tuple[Url, ...]:
    if not urls:
        raise ValueError("a peer without a URL")
    return tuple(map(parse_url, urls))


def _no_answer(failure: Failure) -> None:
    """The streams tell by themselves that a peer is gone."""


def _nothing() -> None:
    """A remote that takes a post is no peer that is active."""
