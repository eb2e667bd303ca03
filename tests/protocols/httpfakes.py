"""What the tests of HTTP/1.1 share: toy methods, a view of a member, an outlet that remembers, and a connection."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tests.protocols.v2keysmember import KeysMember
from twistedkv.errors import EmptyKeyError
from twistedkv.metrics import Metrics
from twistedkv.pb import rpc_pb2
from twistedkv.protocols.answers import Answer, Fields
from twistedkv.protocols.endpoints import Endpoints
from twistedkv.protocols.gateway import Gateway
from twistedkv.protocols.http1 import HTTPFront
from twistedkv.protocols.rpc import Access, Call, Kind, Method, MethodTable, Peer
from twistedkv.protocols.turn import Turn
from twistedkv.protocols.v2site import V2Site
from twistedkv.protocols.web import AccessRules

PEER = Peer("127.0.0.1", 4711, None, False)
MAX_MESSAGE_BYTES = 4096


class ToyMember:
    """Services that answer in the simplest way, and what they were asked.

    ``Put`` answers with its own value as previous value, at once or when told; ``Range`` never answers by itself; the
    streams are kept open.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled: list[Call] = []
        self.received: list[bytes] = []
        self.half_closed: list[Call] = []
        self.pause_after: int | None = None
        self.methods = MethodTable(
            [
                self._method("KV", "Put", Kind.UNARY, rpc_pb2.PutRequest, rpc_pb2.PutResponse, self.put),
                self._method("KV", "Range", Kind.UNARY, rpc_pb2.RangeRequest, rpc_pb2.RangeResponse, self.keep),
                self._method("KV", "Txn", Kind.UNARY, rpc_pb2.TxnRequest, rpc_pb2.TxnResponse, self.broken),
                self._method("Watch", "Watch", Kind.BIDI, rpc_pb2.WatchRequest, rpc_pb2.WatchResponse, self.stream),
                self._method(
                    *("Maintenance", "Snapshot", Kind.SERVER_STREAM),
                    *(rpc_pb2.SnapshotRequest, rpc_pb2.SnapshotResponse, self.keep),
                ),
            ]
        )

    @staticmethod
    def _method(service, name, kind, request, response, handler):  # type: ignore[no-untyped-def]
        return Method(f"/etcdserverpb.{service}/{name}", kind, request, response, Access.OPEN, handler)

    def keep(self, call: Call) -> None:
        """Remember the call."""
        self.calls.append(call)
        call.on_cancel = lambda: self.cancelled.append(call)

    def put(self, call: Call) -> None:
        """Answer at once."""
        self.keep(call)
        request = rpc_pb2.PutRequest.FromString(call.message)
        if not request.key:
            call.fail(EmptyKeyError())
            return
        answer = rpc_pb2.PutResponse()
        answer.header.revision = len(self.calls)
        answer.prev_kv.value = request.value
        call.reply(answer.SerializeToString())

    def broken(self, call: Call) -> None:
        """Fail as no handler should."""
        raise RuntimeError("broken handler")

    def stream(self, call: Call) -> None:
        """Take a stream of requests."""
        self.keep(call)

        def on_message(message: bytes) -> None:
            self.received.append(message)
            if self.pause_after == len(self.received):
                call.pause()

        call.on_message = on_message
        call.on_half_close = lambda: self.half_closed.append(call)


class View:
    """A member view whose facts a test sets."""

    server_version = "3.5.1"

    def __init__(self) -> None:
        self.cluster_version = "3.5.0"
        self.has_leader = True
        self.is_learner = False
        self.raised: list[str] = []
        self.linearizable: Exception | Deferred[None] | None = None
        self.serializable: Exception | None = None

    def alarms(self) -> list[str]:
        return self.raised

    def linearizable_check(self) -> Deferred[None]:
        return self.linearizable if isinstance(self.linearizable, Deferred) else _fired(self.linearizable)

    def serializable_check(self) -> Deferred[None]:
        return _fired(self.serializable)


def _fired(error: Exception | None) -> Deferred[None]:
    return succeed(None) if error is None else fail(error)


class RecordingOutlet:
    """Keeps what was sent."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.begun: list[Fields] = []
        self.pieces: list[bytes] = []
        self.ended = False
        self.writable = True

    def respond(self, answer: Answer) -> None:
        self.answers.append(answer)

    def begin(self, fields: Fields) -> None:
        self.begun.append(fields)

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def end(self) -> None:
        self.ended = True


class Wire:
    """One HTTP/1.1 connection in memory, and everything behind it."""

    def __init__(
        self, peer: Peer = PEER, rules: AccessRules | None = None, *, auth: bool = False, v2: bool = True
    ) -> None:
        self.clock = Clock()
        self.member = ToyMember()
        self.view = View()
        self.metrics = Metrics()
        self.metrics.count_calls_of(self.member.methods.by_path.values())
        self.failures: list[tuple[BaseException, str]] = []
        self.gateway = Gateway(
            self.member.methods,
            self.clock,
            MAX_MESSAGE_BYTES,
            lambda error, path: self.failures.append((error, path)),
            lambda: auth,
            self.metrics,
        )
        endpoints = Endpoints(self.view, self.metrics.exposition, self.metrics)
        self.keys = KeysMember(self.clock)
        self.turn = Turn(self.clock)
        site = V2Site(self.keys) if v2 else None
        self.front = HTTPFront(self.clock, self.gateway, endpoints, rules, v2=site, turn=self.turn)
        self.protocol = self.front.http1_protocol(peer)
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)

    def send(self, data: bytes) -> bytes:
        """Deliver ``data``; what the server has sent since the last time."""
        with self.turn:
            self.protocol.dataReceived(data)
        return self.taken()

    def another(self) -> IProtocol:
        """Another connection of the same server."""
        protocol = self.front.http1_protocol(PEER)
        protocol.makeConnection(StringTransport())
        return protocol

    def taken(self) -> bytes:
        """What the server has sent since the last time, to the end of this turn."""
        self.clock.advance(0)
        sent: bytes = self.transport.value()
        self.transport.clear()
        return sent

    def lose(self) -> None:
        """The client goes away."""
        self.transport.unregisterProducer()
        self.protocol.connectionLost(Failure(ConnectionDone()))


def request(path: str, body: bytes = b"", method: str = "POST", *headers: str) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def parse(data: bytes, *, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the one whole answer that ``data`` is; one to HEAD has no body."""
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) if ": " in line else (line, "") for line in lines)
    if has_body and "content-length" in headers and len(body) != int(headers["content-length"]):
        raise ValueError(f"the body has {len(body)} bytes: {data!r}")
    return int(status.split()[1]), headers, body
