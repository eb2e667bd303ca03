"""The seam between transports and services: methods, who may call them, and one call in progress.

A transport (gRPC over HTTP/2, the JSON gateway) finds the :class:`Method` by its path, makes a :class:`Call` and hands
it to the handler. A service answers by :meth:`Call.reply` or :meth:`Call.fail`, now or later, and knows nothing of
frames. Messages cross this seam as protobuf bytes; a service parses what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from twistedkv.errors import KVError, UnimplementedError

_REQUIRE_LEADER: Final = ("hasleader", "true")  # metadata; etcd api/v3rpc/rpctypes/metadatafields.go


class Kind(Enum):
    """How many messages go each way."""

    UNARY = "unary"
    SERVER_STREAM = "server stream"
    CLIENT_STREAM = "client stream"
    BIDI = "bidi stream"


class Access(Enum):
    """What a caller needs once authentication is on. A method that does not say it keeps the server from starting."""

    OPEN = "anyone who can connect"
    IDENTITY = "any valid user"
    KEYS = "the permissions of the keys in the request"
    ADMIN = "the root role"


class Head(NamedTuple):
    """What a request's headers say. Shared by all requests with equal headers: treat it as frozen."""

    path: str
    metadata: Mapping[str, str]  # lower-case names, without the pseudo and transport headers
    timeout_s: float | None  # from grpc-timeout


class Peer(NamedTuple):
    """The other end of a connection."""

    host: str
    port: int
    common_name: str | None  # of the verified client certificate
    secure: bool


class Call:
    """One RPC as its handler sees it; each transport has a subclass that implements the four verbs.

    A handler gets the call with ``message`` set for UNARY and SERVER_STREAM methods. For CLIENT_STREAM and BIDI it sets
    ``on_message`` and ``on_half_close`` before it returns. After :meth:`reply`, :meth:`fail`, :meth:`finish` or a
    cancellation ``done`` is true and further verbs do nothing.
    """

    __slots__ = (
        "__weakref__",
        "began_s",
        "done",
        "head",
        "message",
        "method",
        "on_cancel",
        "on_half_close",
        "on_message",
        "on_writable",
        "peer",
    )

    def __init__(self, method: Method, head: Head, peer: Peer, message: bytes = b"") -> None:
        self.method = method
        self.head = head
        self.peer = peer
        self.message = message
        self.done = False
        self.on_message: Callable[[bytes], None] | None = None  # one whole message of a client stream
        self.on_half_close: Callable[[], None] | None = None  # the client will send no more
        self.on_cancel: Callable[[], None] | None = None  # client reset, deadline, lost connection; done is true
        self.on_writable: Callable[[], None] | None = None  # room again after writable was false
        self.began_s: float  # set by the observer

    @property
    def writable(self) -> bool:
        """False while what was sent waits for the client: a stream should stop producing until ``on_writable``."""
        raise NotImplementedError

    def reply(self, message: bytes) -> None:
        """Answer a unary call (or end a client stream) with one message and status OK."""
        raise NotImplementedError

    def fail(self, error: BaseException) -> None:
        """End the call with the status of ``error``: a KVError's own, else UNKNOWN, which is also logged."""
        raise NotImplementedError

    def send(self, message: bytes) -> None:
        """Send one message of a server stream or bidi stream; the call stays open."""
        raise NotImplementedError

    def finish(self) -> None:
        """End a server stream or bidi stream with status OK."""
        raise NotImplementedError

    def interrupt(self, error: KVError) -> None:
        """End the call by a refusal that its handler did not choose, and tell it by ``on_cancel``."""
        if not self.done:
            self.fail(error)
            if self.on_cancel is not None:
                self.on_cancel()

    def pause(self) -> None:
        """Ask for no further ``on_message`` until :meth:`resume`; the client feels it by flow control."""

    def resume(self) -> None:
        """Go on after :meth:`pause`."""


class CallObserver(Protocol):
    """Who counts calls; ``call.began_s`` is its own to use. Called on the hot path: be quick, and do not raise."""

    def started(self, call: Call) -> None:
        """A call of a known method began."""

    def handled(self, call: Call, code: int) -> None:
        """It ended with ``code``."""

    def message_received(self, call: Call) -> None:
        """One message of a client's stream came."""

    def message_sent(self, call: Call) -> None:
        """One message of the answer's stream goes out."""


Handler = Callable[[Call], None]


@dataclass(eq=False, slots=True)
class Method:
    """One RPC of one service. Nothing of it changes but the handler, before which a gate may put itself."""

    path: str  # "/etcdserverpb.KV/Put"
    kind: Kind
    request: type[Message]
    response: type[Message]
    access: Access
    handler: Handler


def service_methods(service: ServiceDescriptor, declared: Mapping[str, tuple[Access, Handler]]) -> list[Method]:
    """The methods of one service; kinds and messages come from its descriptor.

    Raises:
        ValueError: a method of the service is not declared, or something declared is not a method of it.
    """
    names = {method.name for method in service.methods}
    if names != declared.keys():
        raise ValueError(f"{service.full_name}: {sorted(names ^ declared.keys())} declared without being there, or not")
    return [
        Method(
            f"/{service.full_name}/{method.name}",
            _KINDS[method.client_streaming, method.server_streaming],
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
            *declared[method.name],
        )
        for method in service.methods
    ]


_KINDS = {
    (False, False): Kind.UNARY,
    (False, True): Kind.SERVER_STREAM,
    (True, False): Kind.CLIENT_STREAM,
    (True, True): Kind.BIDI,
}


class MethodTable:
    """All methods of a server by path.

    ``require_leader`` has the methods for callers who want to be refused where no leader is known, as far as there is
    a gate that does so: see :mod:`twistedkv.protocols.gate`.

    Args:
        methods: every method that the server answers.

    Raises:
        ValueError: two methods share a path, or one does not declare its access.
    """

    def __init__(self, methods: Iterable[Method]) -> None:
        self.by_path: dict[str, Method] = {}
        self.require_leader: dict[str, Method] = {}
        for method in methods:
            access: Any = method.access
            if not isinstance(access, Access):
                raise ValueError(f"{method.path} does not declare who may call it")
            if method.path in self.by_path:
                raise ValueError(f"{method.path} is registered twice")
            self.by_path[method.path] = method

    def find(self, head: Head) -> Method | None:
        """The method that a request with this head is for; None if there is none at its path."""
        method = self.by_path.get(head.path)
        if method is None or not self.require_leader:
            return method
        name, value = _REQUIRE_LEADER
        return self.require_leader.get(head.path, method) if head.metadata.get(name) == value else method


def unimplemented(call: Call) -> None:
    """The handler of a method that exists in etcd's API and is not written yet."""
    call.fail(UnimplementedError(call.method.path))
