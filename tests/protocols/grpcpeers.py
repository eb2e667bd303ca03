"""The other side for the codec's tests: the ``h2`` library as client and as server, in memory, and toy methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import pack
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings

from twistedkv.errors import KeyNotFoundError
from twistedkv.pb import rpc_pb2
from twistedkv.protocols.grpc import GrpcServerConnection, RPCObserver
from twistedkv.protocols.keepalive import DEFAULT_KEEPALIVE, Keepalive
from twistedkv.protocols.limits import Limits
from twistedkv.protocols.rpc import Access, Call, Kind, Method, MethodTable, Peer

PUT = "/etcdserverpb.KV/Put"
BROKEN = "/etcdserverpb.KV/Broken"
LATER = "/etcdserverpb.KV/Later"
SNAPSHOT = "/etcdserverpb.Maintenance/Snapshot"
COLLECT = "/etcdserverpb.KV/Collect"
WATCH = "/etcdserverpb.Watch/Watch"
PEER = Peer("192.0.2.1", 4711, "client", True)

Headers = list[tuple[str, str]]


def framed(message: bytes, flag: int = 0) -> bytes:
    """A gRPC message with its prefix."""
    return pack(">BI", flag, len(message)) + message


def put_bytes(key: bytes = b"k", value: bytes = b"v") -> bytes:
    """A PutRequest."""
    return rpc_pb2.PutRequest(key=key, value=value).SerializeToString()


class ToyService:
    """One method of each kind, and what they saw."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled: list[Call] = []
        self.messages: list[bytes] = []
        self.half_closed = 0
        self.writable_again = 0
        self.failures: list[tuple[BaseException, str]] = []

    def table(self) -> MethodTable:
        """The methods."""
        put, range_ = rpc_pb2.PutRequest, rpc_pb2.RangeResponse
        kinds: list[tuple[str, Kind, Callable[[Call], None]]] = [
            (PUT, Kind.UNARY, self.put),
            (BROKEN, Kind.UNARY, self.broken),
            (LATER, Kind.UNARY, self.later),
            (SNAPSHOT, Kind.SERVER_STREAM, self.snapshot),
            (COLLECT, Kind.CLIENT_STREAM, self.collect),
            (WATCH, Kind.BIDI, self.watch),
        ]
        return MethodTable(Method(path, kind, put, range_, Access.KEYS, handler) for path, kind, handler in kinds)

    def put(self, call: Call) -> None:
        """Answer with the request; refuse an empty key as etcd does a missing one."""
        self.calls.append(call)
        request = rpc_pb2.PutRequest.FromString(call.message)
        if not request.key:
            call.fail(KeyNotFoundError())
        else:
            call.reply(call.message)

    def broken(self, call: Call) -> None:
        """A handler with a bug."""
        raise LookupError("no such thing")

    def later(self, call: Call) -> None:
        """Keep the call; the test answers it."""
        self._keep(call)

    def snapshot(self, call: Call) -> None:
        """Three messages and the end."""
        self._keep(call)
        for number in range(3):
            call.send(b"%d" % number + call.message)
        call.finish()

    def collect(self, call: Call) -> None:
        """Answer a stream of messages with all of them."""
        self._keep(call)
        call.on_message = self.messages.append
        call.on_half_close = lambda: call.reply(b"".join(self.messages))

    def watch(self, call: Call) -> None:
        """Echo each message, and end when the client does."""
        self._keep(call)

        def on_message(message: bytes) -> None:
            self.messages.append(message)
            call.send(b"echo " + message)

        def on_half_close() -> None:
            self.half_closed += 1
            call.finish()

        call.on_message = on_message
        call.on_half_close = on_half_close

    def log_failure(self, error: BaseException, path: str) -> None:
        """What the server would log."""
        self.failures.append((error, path))

    def _keep(self, call: Call) -> None:
        self.calls.append(call)
        call.on_cancel = lambda: self.cancelled.append(call)

        def on_writable() -> None:
            self.writable_again += 1

        call.on_writable = on_writable


class Answer:
    """What a client got on one stream."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.trailers: dict[str, str] = {}
        self.body = b""
        self.ended = False
        self.reset: int | None = None

    @property
    def status(self) -> tuple[int, str]:
        """grpc-status and grpc-message, out of the trailers or, where there is no more, out of the head."""
        fields = self.trailers or self.headers
        return int(fields["grpc-status"]), fields["grpc-message"]

    @property
    def messages(self) -> list[bytes]:
        """The messages of the body."""
        found, at = [], 0
        while at < len(self.body):
            size = int.from_bytes(self.body[at + 1 : at + 5], "big")
            found.append(self.body[at + 5 : at + 5 + size])
            at += 5 + size
        return found


class H2Client:
    """The ``h2`` library as a client of one ``GrpcServerConnection``; ``pump`` moves the bytes both ways."""

    def __init__(
        self,
        limits: Limits | None = None,
        max_message_bytes: int = 2097152,
        observer: RPCObserver | None = None,
        cut: Callable[[bytes], Iterable[bytes]] = lambda data: (data,),
        settings: dict[int, int] | None = None,
        keepalive: Keepalive = DEFAULT_KEEPALIVE,
    ) -> None:
        self.service = ToyService()
        self.server = GrpcServerConnection(
            self.service.table(),
            PEER,
            limits or Limits(),
            max_message_bytes,
            self.service.log_failure,
            observer,
            keepalive,
        )
        self.announced = 0
        self.server.on_output = self._announce
        self.now_s = 100.0
        self.answers: dict[int, Answer] = {}
        self.goaway: h2.events.ConnectionTerminated | None = None
        self.goaways: list[Any] = []
        self.auto_ack = True  # give the server credit for what it sent
        self._bodies: dict[
            int, tuple[bytes, bool]
        ] = {}  # what is still to be sent on streams, and whether it ends them
        self._cut = cut
        config = h2.config.H2Configuration(
            client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding="utf-8"
        )
        self.h2 = h2.connection.H2Connection(config)
        if settings:
            self.h2.local_settings = h2.settings.Settings(client=True, initial_values=settings)
        self.h2.initiate_connection()
        self.server.start()
        self.pump()

    def _announce(self) -> None:
        self.announced += 1

    def headers(self, path: str, **more: str | None) -> Headers:
        """Request headers; ``more`` replaces or adds, None drops.

        Underscores stand for dashes; method, scheme and authority for the pseudo headers.
        """
        fields: dict[str, str | None] = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "localhost",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        for name, value in more.items():
            name = name.replace("_", "-")
            fields[":" + name if name in ("method", "scheme", "authority") else name] = value
        return [(name, value) for name, value in fields.items() if value is not None]

    def open(self, path: str, end_stream: bool = False, **more: str | None) -> int:
        """Send the headers of a request."""
        stream_id: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, self.headers(path, **more), end_stream=end_stream)
        return stream_id

    def request(self, path: str, *messages: bytes, **more: str | None) -> Answer:
        """Send a whole request, move bytes, and return what came back."""
        stream_id = self.send(path, *messages, **more)
        self.pump()
        return self.answers[stream_id]

    def send(self, path: str, *messages: bytes, **more: str | None) -> int:
        """Send a whole request of framed messages, as far as the windows allow; ``pump`` sends the rest."""
        stream_id = self.open(path, **more)
        self.send_body(stream_id, b"".join(framed(message) for message in messages), end_stream=True)
        return stream_id

    def send_body(self, stream_id: int, body: bytes, end_stream: bool = False) -> None:
        """Send ``body`` as far as the windows allow; ``pump`` sends the rest."""
        self._bodies[stream_id] = (self._bodies.get(stream_id, (b"", False))[0] + body, end_stream)
        self._send_bodies()

    def _send_bodies(self) -> None:
        for stream_id, (body, end_stream) in list(self._bodies.items()):
            while True:
                size = min(16384, self.h2.local_flow_control_window(stream_id), len(body))
                last = size == len(body)
                if not size and not last:
                    self._bodies[stream_id] = (body, end_stream)
                    break
                self.h2.send_data(stream_id, body[:size], end_stream=end_stream and last)
                body = body[size:]
                if last:
                    del self._bodies[stream_id]
                    break

    def pump(self) -> None:
        """Move bytes until both sides are silent."""
        while True:
            self._send_bodies()
            outbound = self.h2.data_to_send()
            for part in self._cut(outbound) if outbound else ():
                self.server.receive(part, self.now_s)
            inbound = self.server.take_output()
            if not outbound and not inbound:
                return
            if inbound:
                self.take(inbound)

    def raw(self, data: bytes) -> None:
        """Give the server bytes that the library would not make, and read what comes."""
        self.server.receive(data, self.now_s)
        inbound = self.server.take_output()
        if inbound:
            self.take(inbound)

    def take(self, inbound: bytes) -> None:
        """Let the library read what the server sent."""
        for event in self.h2.receive_data(inbound):
            self._note(event)

    def _note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = event
            self.goaways.append(event)
            return
        stream_id = getattr(event, "stream_id", None)
        if not stream_id:
            return
        answer = self.answers.setdefault(stream_id, Answer())
        if isinstance(event, h2.events.ResponseReceived):
            answer.headers = dict(event.headers)  # type: ignore[arg-type]
        elif isinstance(event, h2.events.TrailersReceived):
            answer.trailers = dict(event.headers)  # type: ignore[arg-type]
        elif isinstance(event, h2.events.DataReceived):
            answer.body += event.data
            if self.auto_ack:
                self.h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            answer.ended = True
        elif isinstance(event, h2.events.StreamReset):
            answer.reset = int(event.error_code)
            self._bodies.pop(stream_id, None)
