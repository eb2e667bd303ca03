"""Where the bodies of requests on the peer port go: collected whole, passed on piece by piece, or thrown away."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.protocols.answers import NO_FIELDS, Answer
from twistedkv.protocols.answers import error_text as error
from twistedkv.protocols.receiver import PeerObserver, Receiver, SnapshotSink
from twistedkv.raft.messages import Message, MessageType
from twistedkv.raft.wire import DecodeError, UnknownTypeError, decode_message

# The keys of the v2 API are in it; the database behind it has no bound. etcd 3.5 rafthttp/http.go, snapshotLimitByte
MAX_SNAPSHOT_MESSAGE_BYTES: Final = 1024 * 1024 * 1024

_DRAIN_BYTES: Final = 256 * 1024  # read of a refused body before the connection is cut, as Go's net/http does
_LENGTH = struct.Struct(">Q")

_log = Logger()


class Intake(Protocol):
    """Takes the body of one request."""

    def take(self, data: bytes) -> None:
        """A part, never empty."""

    def complete(self) -> None:
        """That was all."""

    def cut(self) -> None:
        """The rest does not come."""


class Exchange(Protocol):
    """The connection, as far as one request is concerned."""

    transport: Any

    def respond(self, answer: Answer) -> None:
        """Answer the request."""

    def refuse(self, answer: Answer) -> None:
        """Answer, whatever of the body is still to come."""

    def refused(self, message: Message) -> Answer | None:
        """The answer to a message that is not for us to process; ``None`` if it is."""

    def touch(self) -> None:
        """Something moves."""

    def close(self) -> None:
        """Close when the answer is sent."""


class Drain:
    """Lets the peer read the answer to a body that is not wanted, as far as that is bearable."""

    def __init__(self, connection: Exchange) -> None:
        self._connection = connection
        self._left = _DRAIN_BYTES

    def take(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._connection.close()

    def complete(self) -> None:
        self._connection.close()

    def cut(self) -> None:
        """Nothing to give up."""


class WholeBody:
    """Collects a body within bounds, and has it answered."""

    def __init__(
        self, connection: Exchange, limit_bytes: int, answer: Callable[[bytes], Answer | Deferred[Answer]]
    ) -> None:
        self._connection = connection
        self._left = limit_bytes
        self._answer = answer
        self._parts: list[bytes] = []

    def take(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._parts.clear()
            self._connection.refuse(error(413, "http: request body too large"))
        else:
            self._parts.append(data)

    def complete(self) -> None:
        if self._left < 0:
            return
        answer = self._answer(b"".join(self._parts))
        if isinstance(answer, Deferred):
            answer.addCallbacks(self._connection.respond, self._failed)
            answer.addErrback(lambda failure: _log.failure("answering a peer", failure))
        else:
            self._connection.respond(answer)

    def cut(self) -> None:
        self._parts.clear()

    def _failed(self, failure: Failure) -> None:
        _log.failure("cannot answer a peer", failure)
        self._connection.respond(error(500, "Internal Server Error"))


class SnapshotBody:
    """Takes a snapshot apart: its message, then the database, which goes on to the member's sink at the sink's pace."""

    def __init__(self, connection: Exchange, receiver: Receiver, observer: PeerObserver, crc32c: int | None) -> None:
        self._connection = connection
        self._receiver = receiver
        self._observer = observer
        self._sender = 0  # once its message is here
        self._crc32c = crc32c
        self._head = b""  # up to the end of the message
        self._parts: list[bytes] = []
        self._size = 0
        self._sink: SnapshotSink | None = None
        self._saving: Deferred[None] | None = None  # the sink has not taken the last part yet
        self._later: list[bytes] = []  # parts that came all the same
        self._complete = False
        self._over = False

    def take(self, data: bytes) -> None:
        self._connection.touch()
        if self._over:
            return
        if self._sink is not None:
            self._observer.received_bytes(self._sender, len(data))
            self._write(data)
            return
        self._parts.append(data)
        self._size += len(data)
        needed = 8
        if self._size >= 8:
            self._parts = [b"".join(self._parts)] if len(self._parts[0]) < 8 else self._parts
            (length,) = _LENGTH.unpack_from(self._parts[0])
            if length > MAX_SNAPSHOT_MESSAGE_BYTES:
                self._no_snapshot("failed to decode raft message (rafthttp: error limit exceeded)")
                return
            needed += length
            if self._size >= needed:
                whole = b"".join(self._parts)
                self._parts.clear()
                self._begin(whole[8:needed], whole[needed:])

    def complete(self) -> None:
        if self._over:
            return
        self._complete = True
        if self._sink is None:
            text = "unexpected EOF" if self._size else "EOF"
            self._no_snapshot(f"failed to decode raft message ({text})")
        elif self._saving is None:
            self._finish(self._sink)

    def cut(self) -> None:
        if not self._over:
            self._over = True
            if self._sink is not None:
                _log.warn("the snapshot from {sender:x} was cut off", sender=self._sender)
                self._sink.abort()
                self._observer.snapshot_received(self._sender, False)

    def _begin(self, encoded: bytes, rest: bytes) -> None:
        try:
            message = decode_message(encoded)
        except UnknownTypeError:
            self._no_snapshot("wrong raft message type")
            return
        except DecodeError:
            self._no_snapshot("failed to decode raft message (unexpected EOF)")
            return
        if message.type is not MessageType.SNAPSHOT:
            self._no_snapshot("wrong raft message type")
            return
        refused = self._connection.refused(message)
        if refused is not None:
            self._refuse(refused)
            return
        _log.info("a snapshot from {sender:x} begins to arrive", sender=message.sender)
        self._sender = message.sender
        self._sink = self._receiver.snapshot_begin(message, self._crc32c)
        self._observer.snapshot_receiving(self._sender)
        if rest:
            self._write(rest)

    def _write(self, data: bytes) -> None:
        if self._saving is not None:
            self._later.append(data)
            return
        if self._sink is None:
            return
        saving = self._sink.write(data)
        if saving is not None:
            self._saving = saving
            self._connection.transport.pauseProducing()
            saving.addCallbacks(self._written, self._failed)
            saving.addErrback(lambda failure: _log.failure("taking a snapshot", failure))

    def _written(self, _: None) -> None:
        self._saving = None
        later, self._later = self._later, []
        if self._over:
            return
        if later:
            self._write(b"".join(later))
        if self._saving is None and self._sink is not None:
            self._connection.transport.resumeProducing()
            if self._complete:
                self._finish(self._sink)

    def _finish(self, sink: SnapshotSink) -> None:
        finished = sink.finish()
        finished.addCallbacks(self._saved, self._failed)
        finished.addErrback(lambda failure: _log.failure("taking a snapshot", failure))

    def _saved(self, _: None) -> None:
        self._over = True
        self._observer.snapshot_received(self._sender, True)
        self._connection.respond(Answer(204, NO_FIELDS, b""))

    def _failed(self, failure: Failure) -> None:
        _log.error("cannot save a snapshot: {reason}", reason=failure.getErrorMessage())
        self._connection.transport.resumeProducing()
        if self._sink is not None and not self._over:
            self._sink.abort()
            self._observer.snapshot_received(self._sender, False)
        self._refuse(error(500, f"failed to save KV snapshot ({failure.getErrorMessage()})"))

    def _no_snapshot(self, problem: str) -> None:
        _log.warn("{peer} sent no snapshot: {problem}", peer=self._connection.transport.getPeer(), problem=problem)
        self._refuse(error(400, problem))

    def _refuse(self, answer: Answer) -> None:
        self._over = True
        self._parts.clear()
        self._later.clear()
        self._connection.refuse(answer)
