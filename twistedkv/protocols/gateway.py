"""The JSON gateway: etcd's gRPC methods as ``POST /v3/...`` with JSON bodies.

One table leads from HTTP paths to gRPC methods, and :class:`GatewayCall` is the call that a service then sees, as it
sees those of gRPC. The whole request body is read before the call begins, which Go's HTTP/1.1 server does too before it
lets an answer out. Web sockets, which etcd's gateway also takes, are not here.

Sources: grpc-gateway v1.16 ``runtime/{context,errors,handler}.go``; etcd 3.5 ``server/embed/serve.go`` and the
``.gw.go`` files; reference: etcd 3.5.1's answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Final

from google.protobuf.message import DecodeError, Message
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from twistedkv.errors import Code, RPCError
from twistedkv.protocols.answers import GATEWAY_JSON, JSON, Answer, Fields, Outlet, error_text
from twistedkv.protocols.gojson import decode_base64
from twistedkv.protocols.jsonpb import JSONError, from_json, json_string, stream_from_json, to_json
from twistedkv.protocols.rpc import Call, CallObserver, Head, Kind, Method, MethodTable, Peer
from twistedkv.protocols.status import DEADLINE_EXCEEDED_TEXT, status_of

_KV = "etcdserverpb.KV"
_LEASE = "etcdserverpb.Lease"
_CLUSTER = "etcdserverpb.Cluster"
_MAINTENANCE = "etcdserverpb.Maintenance"
_AUTH = "etcdserverpb.Auth"
_LOCK = "v3lockpb.Lock"
_ELECTION = "v3electionpb.Election"

PATHS: Final[Mapping[str, str]] = {  # below the version prefix: the gRPC method without its first slash
    "kv/range": f"{_KV}/Range",
    "kv/put": f"{_KV}/Put",
    "kv/deleterange": f"{_KV}/DeleteRange",
    "kv/txn": f"{_KV}/Txn",
    "kv/compaction": f"{_KV}/Compact",
    "watch": "etcdserverpb.Watch/Watch",
    "lease/grant": f"{_LEASE}/LeaseGrant",
    "lease/revoke": f"{_LEASE}/LeaseRevoke",
    "kv/lease/revoke": f"{_LEASE}/LeaseRevoke",
    "lease/keepalive": f"{_LEASE}/LeaseKeepAlive",
    "lease/timetolive": f"{_LEASE}/LeaseTimeToLive",
    "kv/lease/timetolive": f"{_LEASE}/LeaseTimeToLive",
    "lease/leases": f"{_LEASE}/LeaseLeases",
    "kv/lease/leases": f"{_LEASE}/LeaseLeases",
    "cluster/member/add": f"{_CLUSTER}/MemberAdd",
    "cluster/member/remove": f"{_CLUSTER}/MemberRemove",
    "cluster/member/update": f"{_CLUSTER}/MemberUpdate",
    "cluster/member/list": f"{_CLUSTER}/MemberList",
    "cluster/member/promote": f"{_CLUSTER}/MemberPromote",
    "maintenance/alarm": f"{_MAINTENANCE}/Alarm",
    "maintenance/status": f"{_MAINTENANCE}/Status",
    "maintenance/defragment": f"{_MAINTENANCE}/Defragment",
    "maintenance/hash": f"{_MAINTENANCE}/Hash",
    "maintenance/hashkv": f"{_MAINTENANCE}/HashKV",
    "maintenance/snapshot": f"{_MAINTENANCE}/Snapshot",
    "maintenance/transfer-leadership": f"{_MAINTENANCE}/MoveLeader",
    "maintenance/downgrade": f"{_MAINTENANCE}/Downgrade",
    "auth/enable": f"{_AUTH}/AuthEnable",
    "auth/disable": f"{_AUTH}/AuthDisable",
    "auth/status": f"{_AUTH}/AuthStatus",
    "auth/authenticate": f"{_AUTH}/Authenticate",
    "auth/user/add": f"{_AUTH}/UserAdd",
    "auth/user/get": f"{_AUTH}/UserGet",
    "auth/user/list": f"{_AUTH}/UserList",
    "auth/user/delete": f"{_AUTH}/UserDelete",
    "auth/user/changepw": f"{_AUTH}/UserChangePassword",
    "auth/user/grant": f"{_AUTH}/UserGrantRole",
    "auth/user/revoke": f"{_AUTH}/UserRevokeRole",
    "auth/role/add": f"{_AUTH}/RoleAdd",
    "auth/role/get": f"{_AUTH}/RoleGet",
    "auth/role/list": f"{_AUTH}/RoleList",
    "auth/role/delete": f"{_AUTH}/RoleDelete",
    "auth/role/grant": f"{_AUTH}/RoleGrantPermission",
    "auth/role/revoke": f"{_AUTH}/RoleRevokePermission",
    "lock/lock": f"{_LOCK}/Lock",
    "lock/unlock": f"{_LOCK}/Unlock",
    "election/campaign": f"{_ELECTION}/Campaign",
    "election/proclaim": f"{_ELECTION}/Proclaim",
    "election/leader": f"{_ELECTION}/Leader",
    "election/observe": f"{_ELECTION}/Observe",
    "election/resign": f"{_ELECTION}/Resign",
}

PREFIXES: Final = (
    "/v3/",
    "/v3beta/",
    "/v3alpha/",
)  # etcd 3.5 itself answers 404 to the last one; 3.3 and before had it

HTTP_STATUS: Final[Mapping[int, HTTPStatus]] = {
    Code.OK: HTTPStatus.OK,
    Code.CANCELLED: HTTPStatus.REQUEST_TIMEOUT,
    Code.UNKNOWN: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    Code.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    Code.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    Code.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    Code.ABORTED: HTTPStatus.CONFLICT,
    Code.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    Code.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    Code.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.DATA_LOSS: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
}

NOT_FOUND: Final = error_text(404, "Not Found")
NOT_POST: Final = error_text(405, "Method Not Allowed")
NAMED_CERTIFICATE: Final = error_text(
    400, "CommonName of client sending a request against gateway will be ignored and not used as expected"
)

_METADATA_PREFIX: Final = "grpc-metadata-"
_TIMEOUT: Final = re.compile(r"([+-]?[0-9]+)([HMSmun])")
_UNIT_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Gateway:
    """Turns HTTP requests into calls.

    Args:
        methods: of the server. Paths whose method is not among them are not found.
        clock: for deadlines.
        max_message_bytes: of a request in protobuf.
        log_failure: is told of failures that are our own.
        auth_enabled: whether authentication is on; then a client whose certificate has a common name is turned away,
            because through the gateway that name would not count.
        observer: counts calls.
    """

    def __init__(
        self,
        methods: MethodTable,
        clock: IReactorTime,
        max_message_bytes: int,
        log_failure: Callable[[BaseException, str], None],
        auth_enabled: Callable[[], bool],
        observer: CallObserver | None = None,
    ) -> None:
        self.methods: dict[str, Method] = {}  # by HTTP path
        for below, name in PATHS.items():
            method = methods.by_path.get(f"/{name}")
            if method is not None:
                self.methods.update((prefix + below, method) for prefix in PREFIXES)
        self._table = methods
        self.clock = clock
        self.max_message_bytes = max_message_bytes
        self.log_failure = log_failure
        self.observer = observer
        self._auth_enabled = auth_enabled

    def call(self, method: Method, head: Head, peer: Peer, body: bytes, outlet: Outlet) -> GatewayCall | None:
        """Answer one request by ``outlet``, now or later.

        Returns:
            The call, to be cancelled when the client goes away; None if it did not come to one.
        """
        if peer.common_name and self._auth_enabled():
            outlet.respond(NAMED_CERTIFICATE)
            return None
        method = self._table.find(head) or method
        call = GatewayCall(self, method, head, peer._replace(common_name=None), outlet)
        takes_stream = method.kind is Kind.BIDI or method.kind is Kind.CLIENT_STREAM
        incoming: Iterator[Message] | None = None
        try:
            if takes_stream:
                incoming = _with_first_read(stream_from_json(body, method.request))
            else:
                call.message = self.checked(from_json(body, method.request))
        except JSONError as error:
            # grpc-gateway passes the decoder's error for a stream of requests on without a gRPC code.
            code = Code.UNKNOWN if takes_stream else Code.INVALID_ARGUMENT
            outlet.respond(error_answer(code, str(error)))
            return None
        except RPCError as error:
            outlet.respond(error_answer(error.code, str(error)))
            return None
        call.start(incoming)
        return call

    def checked(self, message: Message) -> bytes:
        """``message`` as bytes.

        Raises:
            RPCError: it is too long; the words are grpc-go's.
        """
        encoded = message.SerializeToString()
        if len(encoded) > self.max_message_bytes:
            raise too_long(len(encoded), self.max_message_bytes)
        return encoded


class GatewayCall(Call):
    """A call whose answer is JSON."""

    __slots__ = ("_begun", "_deadline", "_feeding", "_gateway", "_incoming", "_outlet", "_paused")

    def __init__(self, gateway: Gateway, method: Method, head: Head, peer: Peer, outlet: Outlet) -> None:
        super().__init__(method, head, peer)
        self._gateway = gateway
        self._outlet = outlet
        self._begun = False  # pieces of a stream have gone out
        self._deadline: IDelayedCall | None = None
        self._incoming: Iterator[Message] | None = None  # messages of the body that were not delivered yet
        self._paused = False
        self._feeding = False

    @property
    def writable(self) -> bool:
        return self._outlet.writable

    def start(self, incoming: Iterator[Message] | None) -> None:
        """Run the handler, then give it the messages of a request stream."""
        if self._gateway.observer is not None:
            self._gateway.observer.started(self)
        timeout_s = self.head.timeout_s
        if timeout_s is not None:
            if timeout_s <= 0:
                self.expire()
                return
            self._deadline = self._gateway.clock.callLater(timeout_s, self.expire)
        self._incoming = incoming
        self._feeding = True  # a handler that pauses and resumes must not be fed before it has returned
        try:
            self.method.handler(self)
        except Exception as error:
            self.fail(error)
        self._feeding = False
        self._feed()

    def reply(self, message: bytes) -> None:
        if self.done:
            return
        try:
            body = to_json(self.method.response.FromString(message))
        except DecodeError as error:
            self.fail(error)
            return
        self._close(Code.OK)
        self._outlet.respond(Answer(200, GATEWAY_JSON, body))

    def fail(self, error: BaseException) -> None:
        if self.done:
            return
        code, text = status_of(error, self.method.path, self._gateway.log_failure)
        self._fail(code, text)

    def send(self, message: bytes) -> None:
        if self.done:
            return
        try:
            body = to_json(self.method.response.FromString(message))
        except DecodeError as error:
            self.fail(error)
            return
        self._begin(GATEWAY_JSON)
        self._outlet.write(b'{"result":' + body + b"}\n")
        if self._gateway.observer is not None:
            self._gateway.observer.message_sent(self)

    def finish(self) -> None:
        if self.done:
            return
        self._begin(JSON)  # without a message grpc-gateway has no gRPC headers to pass on
        self._close(Code.OK)
        self._outlet.end()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._feed()

    def expire(self) -> None:
        """The client's deadline has passed: tell it, then the handler."""
        if not self.done:
            self._deadline = None
            self._fail(Code.DEADLINE_EXCEEDED, DEADLINE_EXCEEDED_TEXT)
            self._cancelled()

    def cancel(self) -> None:
        """The client is gone: tell the handler."""
        if not self.done:
            self._close(Code.CANCELLED)
            self._cancelled()

    def _cancelled(self) -> None:
        if self.on_cancel is not None:
            self.on_cancel()

    def _begin(self, fields: Fields) -> None:
        if not self._begun:
            self._begun = True
            self._outlet.begin(fields)

    def _fail(self, code: int, text: str) -> None:
        self._close(code)
        if self._begun:
            self._outlet.write(_error_line(code, text))
            self._outlet.end()
        elif self.method.kind is not Kind.UNARY and self.method.kind is not Kind.CLIENT_STREAM:
            self._outlet.respond(Answer(HTTP_STATUS[code].value, JSON, _error_line(code, text)))
        else:
            self._outlet.respond(error_answer(code, text))

    def _close(self, code: int) -> None:
        self.done = True
        self._incoming = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._gateway.observer is not None:
            self._gateway.observer.handled(self, code)

    def _feed(self) -> None:
        """Deliver what the body still holds. A bad message ends the stream like its end, as grpc-gateway has it."""
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._incoming is not None and not self._paused:
                try:
                    message = next(self._incoming, None)
                except JSONError:
                    message = None
                if message is None:
                    self._incoming = None
                    if self.on_half_close is not None:
                        self.on_half_close()
                elif self.on_message is not None:
                    if self._gateway.observer is not None:
                        self._gateway.observer.message_received(self)
                    self.on_message(self._gateway.checked(message))
        except Exception as error:
            self.fail(error)
        finally:
            self._feeding = False


def request_head(path: str, headers: Iterable[tuple[str, str]]) -> Head:
    """What the headers of a request mean to the call.

    Args:
        path: of the gRPC method.
        headers: names and values as they came, of equal names the first one counts.

    Raises:
        RPCError: one of them cannot be understood.
    """
    metadata: dict[str, str] = {}
    timeout_s: float | None = None
    for name, value in headers:
        name = name.lower()
        if name == "authorization":
            metadata.setdefault("authorization", value)
        elif name == "grpc-timeout":
            if timeout_s is None and value:
                timeout_s = _seconds(value)
        elif name.startswith(_METADATA_PREFIX):
            if name.endswith("-bin"):
                value = _binary(name, value)
            metadata.setdefault(name.removeprefix(_METADATA_PREFIX), value)
    return Head(path, metadata, timeout_s)


def error_answer(code: int, text: str) -> Answer:
    """The answer to a call that ended with a status, unless its answer is a stream."""
    quoted = json_string(text)
    body = f'{{"error":{quoted},"code":{int(code)},"message":{quoted}}}'
    return Answer(HTTP_STATUS[code].value, JSON, body.encode("utf-8"))


def too_long(length: int, limit: int) -> RPCError:
    """The refusal of a message of ``length`` bytes."""
    return RPCError(Code.RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({length} vs. {limit})")


def _error_line(code: int, text: str) -> bytes:
    """The last line of a stream that ended with a status, and maybe its only one; grpc-gateway writes no line end."""
    status = HTTP_STATUS[code]
    line = (
        f'{{"error":{{"grpc_code":{int(code)},"http_code":{status.value},"message":{json_string(text)},'
        f'"http_status":"{status.phrase}"}}}}'
    )
    return line.encode("utf-8")


def _with_first_read(messages: Iterator[Message]) -> Iterator[Message]:
    """The same messages, with the first one already decoded, so that its error is raised here."""
    first = next(messages, None)

    def replay() -> Iterator[Message]:
        if first is not None:
            yield first
            yield from messages

    return replay()


def _seconds(value: str) -> float:
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise RPCError(Code.INVALID_ARGUMENT, f"invalid grpc-timeout: {value}")
    return int(match[1]) * _UNIT_S[match[2]]


def _binary(name: str, value: str) -> str:
    """The bytes of a ``-bin`` header, each as one character. Without whole groups of four it must have no padding."""
    left = len(value) % 4
    if left:
        value = value.replace("=", "!")  # no more allowed than this
        if left > 1:
            value += "=" * (4 - left)
    try:
        return decode_base64(value).decode("latin-1")
    except JSONError as error:
        shown = "-".join(part.capitalize() for part in name.split("-"))
        raise RPCError(Code.INVALID_ARGUMENT, f"invalid binary header {shown}: {error}") from None
