"""The two ends of a stream between members: the writer that was dialled, and the reader that dials again and again.

Source: etcd ``server/etcdserver/api/rafthttp/stream.go``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedkv.protocols.msgappv2 import Decoder, Encoder, StreamKind, decoder_of
from twistedkv.protocols.peerclient import Dialler, PeerClient, UrlPicker
from twistedkv.protocols.peerheads import CLUSTER_ID_MISMATCH, INCOMPATIBLE, Identity
from twistedkv.protocols.peerhttp import ProtocolError, ResponseHead, chunk
from twistedkv.protocols.receiver import PeerObserver, Receiver
from twistedkv.raft.messages import Message, MessageType

READ_TIMEOUT_S: Final = 5.0  # etcd rafthttp/peer.go, ConnReadTimeout
WRITE_TIMEOUT_S: Final = 5.0  # etcd rafthttp/peer.go, ConnWriteTimeout
ALIVE_INTERVAL_S: Final = READ_TIMEOUT_S / 3  # etcd rafthttp/stream.go, streamWriter.run
REDIAL_S: Final = 0.1  # etcd paces its attempts so
MAX_REDIAL_S: Final = 1.0  # a peer that comes back dials us, which has us dial it at once
MAX_WAITING: Final = 4096  # messages; etcd rafthttp/peer.go, streamBufSize
WRITE_BYTES: Final = 256 * 1024  # encoded before asking whether the peer still reads

_MAX_ERROR_BYTES: Final = 4096
# Passed on for others, or naming one: their sender need not be the stream's (etcd raft.go, stepFollower).
_ON_BEHALF: Final = frozenset({MessageType.PROPOSE, MessageType.READ_INDEX, MessageType.TRANSFER_LEADER})

_log = Logger()


@implementer(IPushProducer)
class StreamWriter:
    """Our end of a stream that a peer has opened to hear from us.

    What is sent in one call leaves in one write. While the peer does not read, a bounded number of messages wait.

    Args:
        transport: of the connection, whose head of the response is written already.
        encoder: a fresh one.
        sent: is told of each write: bytes, messages, and how many seconds it took to encode and hand over.
        clock_s: by which that is measured.
        lost: is called once when the connection is gone, unless by :meth:`close`.
    """

    def __init__(
        self,
        transport: Any,
        encoder: Encoder,
        now_s: float,
        sent: Callable[[int, int, float], None],
        clock_s: Callable[[], float],
        lost: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._encoder = encoder
        self._sent = sent
        self._clock_s = clock_s
        self._lost = lost
        self._waiting: deque[Message] = deque()
        self._blocked = False
        self._written_s = now_s
        self._blocked_s = now_s
        self._wrote = False  # since the last tick
        self._now_s = now_s
        self.open = True
        transport.registerProducer(self, True)

    def send(self, messages: Iterable[Message]) -> int:
        """Send what can be sent; how many messages had to be dropped."""
        waiting = self._waiting
        waiting.extend(messages)
        if not self._blocked:
            self._write()
        dropped = 0
        while len(waiting) > MAX_WAITING:
            waiting.pop()
            dropped += 1
        return dropped

    def tick(self, now_s: float) -> None:
        """Say that the link is alive where nothing else did, and give up a peer that does not read."""
        self._now_s = now_s
        if self._wrote:
            self._wrote = False
            self._written_s = now_s
        if self._blocked:
            if now_s - self._blocked_s >= WRITE_TIMEOUT_S:
                _log.warn("{peer} does not read its stream", peer=self._transport.getPeer())
                self._transport.abortConnection()
        elif now_s - self._written_s >= ALIVE_INTERVAL_S * 0.9:
            self._written_s = now_s
            self._transport.write(chunk(self._encoder.alive))

    def close(self) -> None:
        """End the stream; what waits is lost."""
        if self.open:
            self.open = False
            self._waiting.clear()
            self._transport.abortConnection()

    def pauseProducing(self) -> None:
        self._blocked = True
        self._blocked_s = self._now_s

    def resumeProducing(self) -> None:
        self._blocked = False
        self._write()

    def stopProducing(self) -> None:
        self._blocked = True
        if self.open:
            self.open = False
            self._lost()

    def _write(self) -> None:
        waiting, encode, clock_s = self._waiting, self._encoder.encode, self._clock_s
        while waiting and not self._blocked:
            began_s = clock_s()
            frames = [encode(waiting.popleft())]
            size = len(frames[0])
            while waiting and size < WRITE_BYTES:
                frames.append(encode(waiting.popleft()))
                size += len(frames[-1])
            self._wrote = True
            self._transport.write(b"%x\r\n%b\r\n" % (size, frames[0] if len(frames) == 1 else b"".join(frames)))
            self._sent(size, len(frames), clock_s() - began_s)


class StreamReader:
    """Keeps one stream from a peer open: dials, reads, and dials again after a pause.

    Args:
        dialler: makes the connections.
        remote: the peer.
        changed: is called when the stream has begun or ended.
    """

    def __init__(
        self,
        dialler: Dialler,
        identity: Identity,
        remote: int,
        kind: StreamKind,
        urls: UrlPicker,
        receiver: Receiver,
        observer: PeerObserver,
        changed: Callable[[], None],
    ) -> None:
        self._dialler = dialler
        self._identity = identity
        self._remote = remote
        self._kind = kind
        self._urls = urls
        self._url = urls.picked
        self._receiver = receiver
        self._observer = observer
        self._changed = changed
        self._client: PeerClient | None = None
        self._decoder: Decoder | None = None
        self._error = b""  # what a refusal says
        self._status = 0
        self._redial: IDelayedCall | None = None
        self._pause_s = REDIAL_S
        self._heard_s = 0.0
        self._append_bytes = 0  # that came since the last append was whole
        self._complaint = ""
        self._running = False

    @property
    def active(self) -> bool:
        """Whether the stream is open."""
        return self._decoder is not None

    def start(self) -> None:
        """Dial now."""
        self._running = True
        self._dial()

    def stop(self) -> None:
        """Close, and dial no more."""
        self._running = False
        if self._redial is not None:
            self._redial.cancel()
            self._redial = None
        if self._client is not None:
            self._client.abort()
        self._ended()

    def hurry(self) -> None:
        """The peer was just heard of: dial it now if a pause is in progress."""
        if self._redial is not None:
            self._redial.cancel()
            self._pause_s = REDIAL_S
            self._dial()

    def tick(self, now_s: float) -> None:
        """Give up a peer that was silent for too long."""
        if self._client is not None and now_s - self._heard_s >= READ_TIMEOUT_S:
            self._complain("it is silent")
            self._client.abort()

    # What the connection says.

    def connected(self) -> None:
        if self._client is not None:
            self._heard_s = self._dialler.reactor.seconds()
            self._client.write(self._identity.stream_request(self._kind, self._remote, self._url))

    def head(self, head: ResponseHead) -> None:
        self._heard_s = self._dialler.reactor.seconds()
        self._status, self._error = head.status, b""
        if head.status != 200:
            return
        refusal = self._identity.refusal_of_answer(head.fields)
        if refusal is not None:
            raise ProtocolError(refusal)
        self._decoder = decoder_of(self._kind, self._identity.member_id, self._remote)
        self._append_bytes = 0
        self._pause_s, self._complaint = REDIAL_S, ""
        _log.info("reading {kind} from {remote:x}", kind=self._kind.value, remote=self._remote)
        self._observer.stream_active(self._remote, self._kind, True)
        self._changed()

    def body(self, data: bytes) -> None:
        if self._decoder is None:
            self._error = (self._error + data)[:_MAX_ERROR_BYTES]
            return
        self._heard_s = self._dialler.reactor.seconds()
        self._observer.received_bytes(self._remote, len(data))
        own, remote, received = self._identity.member_id, self._remote, self._receiver.received
        self._append_bytes += len(data)
        appends = 0
        for message in self._decoder.feed(data):
            kind = message.type
            if (message.sender != remote and kind not in _ON_BEHALF) or kind is MessageType.SNAPSHOT:
                raise ProtocolError(f"{kind.name} from {message.sender:x} on the stream of {remote:x}")
            if message.to != own:
                _log.warn("{remote:x} sent us a message for {to:x}", remote=remote, to=message.to)
                self._observer.receive_failed(remote)
                continue
            appends += kind is MessageType.APPEND
            received(message)
        if appends:
            self._observer.appends_received(remote, self._append_bytes, appends)
        if appends or self._kind is not StreamKind.APPENDS:
            self._append_bytes = 0

    def end(self) -> None:
        """The response is over, which is right for a refusal only."""
        status, text = self._status, self._error.decode("latin-1").strip()
        if status == 410:
            self._running = False
            _log.error("{remote:x} says that this member was removed", remote=self._remote)
            self._receiver.removed()
        elif status == 412 and text in (INCOMPATIBLE, CLUSTER_ID_MISMATCH):
            self._complain(f"it refuses us: {text}")
        elif status != 200:
            self._complain(f"it answers {status} {text}")
        if self._client is not None:
            self._client.abort()

    def lost(self, reason: Failure) -> None:
        if isinstance(reason.value, ProtocolError):
            self._observer.receive_failed(self._remote)
        if self._status in (0, 200):
            self._complain(reason.getErrorMessage())
        self._ended()
        self._urls.failed(self._url)
        if self._running:
            self._redial = self._dialler.reactor.callLater(self._pause_s, self._dial)
            self._pause_s = min(self._pause_s * 1.5, MAX_REDIAL_S)

    def _dial(self) -> None:
        self._redial = None
        self._status = 0
        self._heard_s = self._dialler.reactor.seconds()
        self._url = self._urls.picked
        self._client = PeerClient(self)
        self._dialler.dial(self._url, self._client)

    def _ended(self) -> None:
        self._client = None
        if self._decoder is not None:
            self._decoder = None
            self._observer.stream_active(self._remote, self._kind, False)
            self._changed()

    def _complain(self, text: str) -> None:
        """Log a trouble once, not with every attempt."""
        if self._running and text != self._complaint:
            self._complaint = text
            _log.warn("no {kind} stream from {remote:x}: {text}", kind=self._kind.value, remote=self._remote, text=text)
