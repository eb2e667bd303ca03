"""The peer port: what other members ask and deliver over HTTP/1.1, and the streams that they open to hear from us.

Statuses and texts are etcd's (``server/etcdserver/api/rafthttp/http.go``, ``server/etcdserver/api/etcdhttp/peer.go``);
its members match on some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IListeningPort
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString

from twistedkv.optiontypes import Url
from twistedkv.protocols.answers import ERROR_TEXT, JSON, NO_FIELDS, PAGE_NOT_FOUND, STATUS_LINES, Answer, Fields
from twistedkv.protocols.answers import error_text as error
from twistedkv.protocols.http1wire import HEAD_END, MAX_HEAD_BYTES, Refusal, RequestHead, parse_head, refuse_incomplete
from twistedkv.protocols.msgappv2 import StreamKind
from twistedkv.protocols.peerbodies import Drain, Intake, SnapshotBody, WholeBody
from twistedkv.protocols.peerclient import Allows
from twistedkv.protocols.peerheads import (
    CRC_FIELD,
    MEMBERS_PATH,
    PIPELINE_PATH,
    PROBING_PATH,
    SNAPSHOT_PATH,
    STREAM_PATH,
    VERSION_PATH,
    Identity,
    parse_crc,
    parse_id,
    sender_urls,
)
from twistedkv.protocols.peerhttp import Body, ChunkedBody, ProtocolError, SizedBody
from twistedkv.protocols.receiver import PeerObserver, Receiver
from twistedkv.protocols.tls import HandshakeGate, ServerContext, TLSTransport
from twistedkv.protocols.transport import DirectTransport
from twistedkv.raft.messages import Message, MessageType
from twistedkv.raft.wire import DecodeError, UnknownTypeError, decode_message

BACKLOG: Final = 1024
MAX_BODY_BYTES: Final = 64 * 1024 * 1024  # of a posted message, or of what an injected answerer takes
REQUEST_TIMEOUT_S: Final = 60.0  # from the first byte of a request to its last; of a snapshot, between two of them
IDLE_TIMEOUT_S: Final = 300.0  # between requests; etcd embed/etcd.go, ReadTimeout
CHECK_INTERVAL_S: Final = 15.0  # how late that may be noticed

_NAMES_CLUSTER: Final = frozenset({PIPELINE_PATH, SNAPSHOT_PATH, MEMBERS_PATH})
_GET_ONLY: Final = Fields([(b"Allow", b"GET"), *ERROR_TEXT.pairs])
_POST_ONLY: Final = Fields([(b"Allow", b"POST"), *ERROR_TEXT.pairs])

Extra = Callable[[str, str, Mapping[str, str], bytes], Deferred[Answer]]
"""Answers further paths: method, path without query, header fields with names in lower case, body."""

_log = Logger()


class Site(Protocol):
    """What is behind the peer port."""

    reactor: Any
    identity: Identity
    receiver: Receiver
    observer: PeerObserver
    extra: Extra | None

    def knows(self, member_id: int) -> bool:
        """Whether this is a peer that streams are open to."""

    def attach(self, member_id: int, kind: StreamKind, transport: Any) -> None:
        """Write to this peer over ``transport`` from now on; the head of the response is sent."""

    def add_remote(self, member_id: int, urls: Sequence[str]) -> None:
        """Be able to answer a sender that is no peer yet."""


class PeerPort:
    """All listeners for peers, and the connections that came through them.

    Args:
        context: for https; made with ``http/1.1`` as the only protocol.
        allows: a last look at a verified peer, as ``--peer-cert-allowed-cn`` asks for.
    """

    def __init__(self, site: Site, context: ServerContext | None, allows: Allows | None = None) -> None:
        self.site = site
        self.allows = allows
        self._context = context
        self._gate = HandshakeGate()
        self._listeners: list[IListeningPort] = []
        self._open: set[DirectTransport] = set()
        self._all_closed: Deferred[None] | None = None

    def listen(self, url: Url) -> IListeningPort:
        """Accept connections on one address.

        Raises:
            ValueError: the URL is https and there is no certificate.
            CertificateError: the certificate files cannot be used.
            twisted.internet.error.CannotListenError: the address is taken.
        """
        if url.secure:
            if self._context is None:
                raise ValueError(f"no certificate to serve {url} with")
            self._context.current()
        factory = _PortFactory(self, url.secure)
        listener: IListeningPort = self.site.reactor.listenTCP(url.port, factory, BACKLOG, url.host)
        self._listeners.append(listener)
        return listener

    def build(self, secure: bool) -> DirectTransport:
        """The protocols of one new connection, the outer one of which is TCP's."""
        inner = PeerConnection(self)
        reactor = self.site.reactor
        transport: DirectTransport
        if secure and self._context is not None:
            transport = TLSTransport(inner, reactor, self._context.wrap, self._gate, self._closed)
        else:
            transport = DirectTransport(inner, reactor, self._closed)
        self._open.add(transport)
        return transport

    async def stop(self) -> None:
        """Stop listening and cut all connections; streams have no end to wait for."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            stopped = listener.stopListening()
            if stopped is not None:
                await stopped
        if self._open:
            self._all_closed = Deferred()
            for transport in list(self._open):
                transport.abortConnection()
            await self._all_closed

    def _closed(self, transport: DirectTransport) -> None:
        self._open.discard(transport)
        if self._all_closed is not None and not self._open:
            waiting, self._all_closed = self._all_closed, None
            waiting.callback(None)


class _PortFactory(Factory):
    noisy = False

    def __init__(self, port: PeerPort, secure: bool) -> None:
        self._port = port
        self._secure = secure

    def buildProtocol(self, addr: IAddress | None) -> DirectTransport:
        return self._port.build(self._secure)


class PeerConnection(TwistedProtocol):
    """One connection from a peer: one request after the other, the last of which may be for a stream."""

    transport: Any  # a DirectTransport

    def __init__(self, port: PeerPort) -> None:
        self._port = port
        self._site = port.site
        self._held = b""  # received, not looked at
        self._body: Body | None = None
        self._intake: Intake | None = None
        self._answering = False  # an answer is due
        self._close = False  # after it
        self._own_fields = b""  # of this answer
        self._ended = False  # it is a stream now, or closed: nothing more is read
        self._moved_s = 0.0  # when a request began or ended, or a part of a snapshot came
        self._check: IDelayedCall | None = None

    # --- towards the transport ---------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        if self._port.allows is not None and not self._port.allows(self.transport):
            _log.warn("{peer} has a certificate that is not allowed", peer=self.transport.getPeer())
            self._ended = True  # bytes that came with the handshake are delivered all the same
            self.transport.abortConnection()
            return
        self.touch()
        self._check = self._site.reactor.callLater(CHECK_INTERVAL_S, self._check_time)

    def dataReceived(self, data: bytes) -> None:
        if self._ended:
            return
        if not self._held and self._body is None and not self._answering:
            self.touch()
        self._held = self._held + data if self._held else data
        if self._answering and self._body is None and len(self._held) > MAX_HEAD_BYTES:
            self.transport.abortConnection()  # no member asks on before it has its answer
            return
        self._go_on()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ended = True
        self._stop_check()
        intake, self._intake = self._intake, None
        if intake is not None:
            intake.cut()

    def touch(self) -> None:
        """Something moves."""
        self._moved_s = self._site.reactor.seconds()

    # --- requests ----------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        try:
            while self._held and not self._ended:
                if self._body is not None:
                    self._read_body(self._body)
                elif self._answering or not self._read_head():
                    break
        except Refusal as refusal:
            _log.warn("{peer}: {problem}", peer=self.transport.getPeer(), problem=refusal.text)
            self._answering = self._close = True
            self.respond(error(refusal.status, refusal.text))
        except ProtocolError as problem:
            _log.warn("{peer}: {problem}", peer=self.transport.getPeer(), problem=problem)
            self._answering = self._close = True
            self._body = None
            self.respond(error(400, str(problem)))

    def _read_head(self) -> bool:
        """Take a head; false if it is not complete."""
        end = self._held.find(HEAD_END)
        if end < 0 or end > MAX_HEAD_BYTES:
            refuse_incomplete(self._held[: MAX_HEAD_BYTES + 1])
            return False
        head = parse_head(self._held[:end])
        self._held = self._held[end + len(HEAD_END) :]
        fields = dict(head.fields)
        body = _body_of(head, fields)
        if fields.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._answering = True
        self._close = head.close
        self._body = None if body.done else body
        self._route(head, fields)
        if body.done and not self._ended:
            self._end_body()
        return True

    def _read_body(self, body: Body) -> None:
        data, self._held = self._held, b""
        piece = body.feed(data)
        if body.done:
            self._body, self._held = None, body.rest
        if piece and self._intake is not None:
            self._intake.take(piece)
        if body.done:
            self._end_body()

    def _end_body(self) -> None:
        intake, self._intake = self._intake, None
        if intake is not None:
            intake.complete()

    def _route(self, head: RequestHead, fields: Mapping[str, str]) -> None:
        path = head.target.partition("?")[0]
        self._own_fields = b""
        if path in _NAMES_CLUSTER or path.startswith(STREAM_PATH):
            self._own_fields = b"X-Etcd-Cluster-Id: %x\r\n" % self._site.identity.cluster_id
        if path == PIPELINE_PATH:
            self._pipeline(head.method, fields)
        elif path == SNAPSHOT_PATH:
            self._snapshot(head.method, fields)
        elif path.startswith(STREAM_PATH):
            self._stream(head.method, path, fields)
        elif path == PROBING_PATH:
            now = datetime.fromtimestamp(self._site.reactor.seconds(), UTC).isoformat().replace("+00:00", "Z")
            self.refuse(Answer(200, JSON, b'{"OK":true,"Now":"%b"}\n' % now.encode("ascii")))
        elif path == MEMBERS_PATH:
            self._plain(head.method, self._site.receiver.members_json)
        elif path == VERSION_PATH:
            self._plain(head.method, self._site.receiver.version_json)
        elif self._site.extra is not None:
            extra, method = self._site.extra, head.method
            self._intake = WholeBody(self, MAX_BODY_BYTES, lambda body: extra(method, path, fields, body))
        else:
            self.refuse(PAGE_NOT_FOUND)

    def _plain(self, method: str, content: Callable[[], bytes]) -> None:
        if method == "GET":
            self.refuse(Answer(200, JSON, content()))
        else:
            self._own_fields = b""
            self.refuse(error(405, "Method Not Allowed", _GET_ONLY))

    def _pipeline(self, method: str, fields: Mapping[str, str]) -> None:
        if self._may_post(method, fields):
            self._intake = WholeBody(self, MAX_BODY_BYTES, self._posted)

    def _may_post(self, method: str, fields: Mapping[str, str]) -> bool:
        site = self._site
        if method != "POST":
            self._own_fields = b""
            self.refuse(error(405, "Method Not Allowed", _POST_ONLY))
            return False
        refusal = site.identity.refusal(fields)
        if refusal is not None:
            self._refuse_member(fields, refusal)
            return False
        sender = parse_id(fields.get("x-server-from", ""))
        if sender is not None and not site.receiver.is_removed(sender):
            site.add_remote(sender, sender_urls(fields))
        return True

    def _posted(self, body: bytes) -> Answer:
        site = self._site
        try:
            message = decode_message(body)
        except UnknownTypeError as problem:  # etcd's Raft passes over them as well (raft/node.go, Step)
            _log.warn("{peer} posted {problem}", peer=self.transport.getPeer(), problem=problem)
            return Answer(204, NO_FIELDS, b"")
        except DecodeError as problem:
            _log.warn("{peer} posted no message: {problem}", peer=self.transport.getPeer(), problem=problem)
            return error(400, "error unmarshalling raft message")
        site.observer.received_bytes(message.sender, len(body))
        refused = self.refused(message)
        if refused is not None:
            return refused
        if message.type is MessageType.SNAPSHOT:  # its database has a path of its own
            self._close = True
            return error(500, "error processing raft message")
        if message.type is MessageType.APPEND:
            site.observer.appends_received(message.sender, len(body), 1)
        site.receiver.received(message)
        return Answer(204, NO_FIELDS, b"")

    def refused(self, message: Message) -> Answer | None:
        """The answer to a message that is not for us to process; ``None`` if it is."""
        site = self._site
        if site.receiver.is_removed(message.sender):
            reason = b"cannot process message from removed member"
        elif message.to != site.identity.member_id:
            reason = b"cannot process message to mismatch member"
        else:
            return None
        _log.warn(
            "refused {peer}'s message from {sender:x} to {to:x}: {reason}",
            peer=self.transport.getPeer(),
            sender=message.sender,
            to=message.to,
            reason=reason.decode("ascii"),
        )
        site.observer.receive_failed(message.sender)
        return Answer(403, JSON, b'{"message":"%b"}' % reason)

    def _snapshot(self, method: str, fields: Mapping[str, str]) -> None:
        if self._may_post(method, fields):
            crc32c = parse_crc(fields.get(CRC_FIELD.lower()))
            self._intake = SnapshotBody(self, self._site.receiver, self._site.observer, crc32c)

    def _stream(self, method: str, path: str, fields: Mapping[str, str]) -> None:
        site = self._site
        if method != "GET":
            self._own_fields = b""
            self.refuse(error(405, "Method Not Allowed", _GET_ONLY))
            return
        self._own_fields += b"X-Server-Version: %b\r\n" % site.identity.version.encode("latin-1")
        refusal = site.identity.refusal(fields)
        if refusal is not None:
            self._refuse_member(fields, refusal)
            return
        directory, _, text = path.rpartition("/")
        name = directory.removeprefix(STREAM_PATH)
        member = parse_id(text)
        if name not in (kind.value for kind in StreamKind):
            self.refuse(error(404, "invalid path"))
        elif member is None:
            self.refuse(error(404, "invalid from"))
        elif site.receiver.is_removed(member):
            _log.warn("refused {member:x} a stream: it is a removed member", member=member)
            self.refuse(error(410, "removed member"))
        elif not site.knows(member):
            site.add_remote(member, sender_urls(fields))
            self.refuse(error(404, "error sender not found"))
        elif fields.get("x-raft-to") != f"{site.identity.member_id:x}":
            _log.warn("refused {member:x} a stream: it takes us for {to}", member=member, to=fields.get("x-raft-to"))
            self.refuse(error(412, "to field mismatch"))
        else:
            self._ended = True
            self._stop_check()
            head = b"Transfer-Encoding: chunked\r\n\r\n"
            self.transport.write(STATUS_LINES[200] + self._own_fields + self._date() + head)
            site.attach(member, StreamKind(name), self.transport)

    def _refuse_member(self, fields: Mapping[str, str], refusal: str) -> None:
        _log.warn(
            "refused {peer}, which says that it is member {sender} of cluster {cluster}: {refusal}",
            peer=self.transport.getPeer(),
            sender=fields.get("x-server-from", "?"),
            cluster=fields.get("x-etcd-cluster-id", "?"),
            refusal=refusal,
        )
        self.refuse(error(412, refusal))

    # --- answers -----------------------------------------------------------------------------------------------------

    def refuse(self, answer: Answer) -> None:
        """Answer, whatever of the body is still to come."""
        if self._body is not None:
            self._close = True
            self._intake = Drain(self)
        self.respond(answer)

    def respond(self, answer: Answer) -> None:
        """Answer the request, and go on with the next one or close."""
        if self._ended or not self._answering:
            return
        self._answering = False
        parts = [STATUS_LINES[answer.status], answer.fields.block, self._own_fields, self._date()]
        if answer.status != 204:  # RFC 9110 §8.6: a 204 has no length
            parts.append(b"Content-Length: %d\r\n" % len(answer.body))
        parts += (b"Connection: close\r\n\r\n" if self._close else b"\r\n", answer.body)
        self.transport.write(b"".join(parts))
        self.touch()
        if not self._close:
            if self._held and self._body is None:
                self._site.reactor.callLater(0, self._go_on)
        elif self._body is None:
            self.close()

    def close(self) -> None:
        """Close when the answer is sent."""
        self._ended = True
        self._stop_check()
        self.transport.loseConnection()

    def _date(self) -> bytes:
        date: bytes = datetimeToString(self._site.reactor.seconds())
        return b"Date: " + date + b"\r\n"

    # --- time --------------------------------------------------------------------------------------------------------

    def _check_time(self) -> None:
        self._check = self._site.reactor.callLater(CHECK_INTERVAL_S, self._check_time)
        under_way = self._held or self._body is not None
        if self._answering and not under_way:
            return  # whoever answers has a time-out of its own
        limit_s = REQUEST_TIMEOUT_S if under_way else IDLE_TIMEOUT_S
        if self._site.reactor.seconds() - self._moved_s >= limit_s:
            self._stop_check()
            self.transport.abortConnection()

    def _stop_check(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None


def _body_of(head: RequestHead, fields: Mapping[str, str]) -> Body:
    """What reads the body that is announced.

    Raises:
        Refusal: by a coding that no member uses.
    """
    coding = fields.get("transfer-encoding")
    if coding is None:
        return SizedBody(head.length)
    if coding.lower() != "chunked":
        raise Refusal(501, "501 Not Implemented: unsupported transfer encoding")
    return ChunkedBody()
