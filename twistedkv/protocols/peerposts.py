"""What is delivered to a peer by POST: messages while there is no stream, and snapshots.

Source: etcd ``server/etcdserver/api/rafthttp/{pipeline,snapshot_sender}.go``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedkv.optiontypes import Url
from twistedkv.peering import Reply
from twistedkv.protocols.msgappv2 import MessageEncoder
from twistedkv.protocols.peerclient import Asker, Dialler, PeerClient, UrlPicker
from twistedkv.protocols.peerheads import Identity
from twistedkv.protocols.peerhttp import LAST_CHUNK, ResponseHead, chunk
from twistedkv.protocols.receiver import PeerObserver, Receiver
from twistedkv.raft.messages import Message, MessageType
from twistedkv.raft.wire import EntryEncoder, encode_message

IN_FLIGHT: Final = 4  # posts; etcd rafthttp/pipeline.go, connPerPipeline
MAX_QUEUED: Final = 64  # etcd rafthttp/pipeline.go, pipelineBufSize
SNAPSHOT_STALL_S: Final = 30.0  # without a byte taken by the peer
SNAPSHOT_ANSWER_S: Final = 300.0  # for the peer to save the snapshot, after its last byte
SNAPSHOT_TURN_BYTES: Final = 1024 * 1024  # sent before others get their turn

_REMOVED: Final = b"removed member"  # of all reasons for a 403 the one that is final
_MAX_ERROR_BYTES: Final = 4096

_log = Logger()


class Pipeline:
    """Posts messages to one peer, a few at a time; their order is not kept.

    Args:
        alive: is called when the peer has taken one.
    """

    def __init__(
        self,
        dialler: Dialler,
        identity: Identity,
        remote: int,
        urls: UrlPicker,
        receiver: Receiver,
        observer: PeerObserver,
        entries: EntryEncoder,
        alive: Callable[[], None],
    ) -> None:
        self._dialler = dialler
        self._identity = identity
        self._remote = remote
        self._urls = urls
        self._receiver = receiver
        self._observer = observer
        self._entries = entries
        self._alive = alive
        self._queue: deque[Message] = deque()
        self._idle: list[Asker] = []
        self._busy: set[Asker] = set()
        self._stopped = False

    def send(self, message: Message) -> bool:
        """Post ``message`` as soon as possible; false if too many are waiting already."""
        if len(self._queue) >= MAX_QUEUED:
            return False
        self._queue.append(message)
        self._post()
        return True

    def stop(self) -> None:
        """Give up all posts."""
        self._stopped = True
        self._queue.clear()
        for asker in (*self._idle, *self._busy):
            asker.close()

    def _post(self) -> None:
        while self._queue and len(self._busy) < IN_FLIGHT and not self._stopped:
            asker = self._idle.pop() if self._idle else Asker(self._dialler, self._urls)
            self._busy.add(asker)
            message = self._queue.popleft()
            encoded = encode_message(message, self._entries)
            self._observer.sent_bytes(self._remote, len(encoded))
            answer = asker.ask(self._request_of(encoded))
            if message.type is MessageType.APPEND:
                self._observer.appends_sent(self._remote, len(encoded), 1)
                answer.addCallback(self._time_append, self._observer.clock_s())
                answer.addErrback(self._append_lost)
            answer.addCallbacks(self._answered, self._failed)
            answer.addBoth(self._next, asker)
            answer.addErrback(lambda failure: _log.failure("posting to a peer", failure))

    def _request_of(self, encoded: bytes) -> Callable[[Url], bytes]:
        return lambda url: self._identity.post_request(encoded, url)

    def _time_append(self, reply: Reply, began_s: float) -> Reply:
        if reply.status == 204:
            self._observer.append_posted(self._remote, self._observer.clock_s() - began_s)
        else:
            self._observer.append_lost(self._remote)
        return reply

    def _append_lost(self, failure: Failure) -> Failure:
        if not self._stopped:
            self._observer.append_lost(self._remote)
        return failure

    def _answered(self, reply: Reply) -> None:
        if reply.status == 204:
            self._alive()
            return
        if reply.status == 403 and _REMOVED in reply.body:
            _log.error("{remote:x} says that this member was removed", remote=self._remote)
            self._receiver.removed()
        self._lost(f"status {reply.status} {reply.body[:200].decode('latin-1').strip()}")

    def _failed(self, failure: Failure) -> None:
        self._lost(failure.getErrorMessage())

    def _lost(self, text: str) -> None:
        if not self._stopped:
            _log.debug("a message for {remote:x} was lost: {text}", remote=self._remote, text=text)
            self._observer.send_failed(self._remote)
            self._receiver.unreachable(self._remote)

    def _next(self, _: object, asker: Asker) -> None:
        self._busy.discard(asker)
        self._idle.append(asker)
        self._post()


@implementer(IPushProducer)
class SnapshotPost:
    """Delivers one snapshot, at the peer's pace.

    Args:
        message: of type SNAPSHOT.
        chunks: of the database, read one at a time.
        crc32c: of the whole database.
        done: is called once with whether the peer has it; not after :meth:`stop`.
    """

    def __init__(
        self,
        dialler: Dialler,
        identity: Identity,
        url: Url,
        message: Message,
        chunks: Callable[[], Iterator[bytes]],
        crc32c: int,
        done: Callable[[SnapshotPost, bool], None],
    ) -> None:
        self._dialler = dialler
        self._identity = identity
        self._url = url
        self._message = message
        self._chunks = chunks
        self._crc32c = crc32c
        self._done: Callable[[SnapshotPost, bool], None] | None = done
        self._client = PeerClient(self)
        self._reading: Iterator[bytes] | None = None
        self._blocked = False
        self._again: IDelayedCall | None = None
        self._deadline: IDelayedCall | None = None
        self._status = 0
        self._error = b""

    def start(self) -> None:
        """Dial."""
        self._wait(SNAPSHOT_STALL_S)
        self._dialler.dial(self._url, self._client)

    def stop(self) -> None:
        """Give it up."""
        self._done = None
        self._over()
        self._client.abort()

    # What the connection says.

    def connected(self) -> None:
        self._reading = self._chunks()
        self._client.write(self._identity.snapshot_request(self._url, self._crc32c))
        self._client.write(chunk(MessageEncoder().encode(self._message)))
        self._client.transport.registerProducer(self, True)
        self._send()

    def head(self, head: ResponseHead) -> None:
        self._status = head.status
        self._reading = None  # an answer before the end is a refusal

    def body(self, data: bytes) -> None:
        self._error = (self._error + data)[:_MAX_ERROR_BYTES]

    def end(self) -> None:
        self._finish(self._status == 204, f"status {self._status} {self._error.decode('latin-1').strip()}")

    def lost(self, reason: Failure) -> None:
        self._finish(False, reason.getErrorMessage())

    # What the transport says.

    def pauseProducing(self) -> None:
        self._blocked = True

    def resumeProducing(self) -> None:
        self._blocked = False
        self._send()

    def stopProducing(self) -> None:
        self._blocked = True

    def _send(self) -> None:
        self._again = None
        sent = 0
        while self._reading is not None and not self._blocked:
            if sent >= SNAPSHOT_TURN_BYTES:
                self._again = self._dialler.reactor.callLater(0, self._send)
                break
            try:
                piece = next(self._reading, None)
            except Exception as error:  # whatever the reading of a file or a database may say
                self._finish(False, f"cannot read it: {error}")
                return
            if piece is None:
                self._reading = None
                self._client.write(LAST_CHUNK)
                self._wait(SNAPSHOT_ANSWER_S)
                return
            if piece:
                self._client.write(chunk(piece))
                sent += len(piece)
        if sent:
            self._wait(SNAPSHOT_STALL_S)

    def _wait(self, timeout_s: float) -> None:
        if self._deadline is None:
            self._deadline = self._dialler.reactor.callLater(timeout_s, self._too_slow)
        else:
            self._deadline.reset(timeout_s)

    def _too_slow(self) -> None:
        self._deadline = None
        self._finish(False, "it takes too long")

    def _finish(self, ok: bool, text: str) -> None:
        done, self._done = self._done, None
        self._over()
        if done is None:
            return
        to = self._message.to
        if ok:
            _log.info("{to:x} has the snapshot", to=to)
        else:
            _log.warn("{to:x} did not take the snapshot: {text}", to=to, text=text)
        done(self, ok)
        self._client.abort()

    def _over(self) -> None:
        self._reading = None
        for call in (self._again, self._deadline):
            if call is not None and call.active():
                call.cancel()
        self._again = self._deadline = None
