"""Small blocking clients: gRPC by grpcio with our own messages, the JSON gateway by ``http.client``.

grpcio is an implementation of HTTP/2, gRPC and TLS that is not ours, which is why tests of the server use it. Both
clients speak of methods by their full gRPC path and of messages as protobuf messages, and both give a :class:`Reply`.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message

from tests.functional.processes import ServerProcess
from twistedkv.pb import rpc_pb2 as pb
from twistedkv.pb import v3election_pb2, v3lock_pb2

TIMEOUT_S = 30.0
_MESSAGE_LIMIT = 64 << 20  # ours: what a server refuses is for the server to say


class Rpc(NamedTuple):
    """One method: its gRPC path, the gateway's path (``None``: not reachable there in 3.5.1), its messages."""

    path: str
    http_path: str | None
    request: type[Message]
    response: type[Message]


_TABLE = (
    Rpc("/etcdserverpb.KV/Range", "/v3/kv/range", pb.RangeRequest, pb.RangeResponse),
    Rpc("/etcdserverpb.KV/Put", "/v3/kv/put", pb.PutRequest, pb.PutResponse),
    Rpc("/etcdserverpb.KV/DeleteRange", "/v3/kv/deleterange", pb.DeleteRangeRequest, pb.DeleteRangeResponse),
    Rpc("/etcdserverpb.KV/Txn", "/v3/kv/txn", pb.TxnRequest, pb.TxnResponse),
    Rpc("/etcdserverpb.KV/Compact", "/v3/kv/compaction", pb.CompactionRequest, pb.CompactionResponse),
    Rpc("/etcdserverpb.Cluster/MemberList", "/v3/cluster/member/list", pb.MemberListRequest, pb.MemberListResponse),
    Rpc("/etcdserverpb.Maintenance/Alarm", "/v3/maintenance/alarm", pb.AlarmRequest, pb.AlarmResponse),
    Rpc("/etcdserverpb.Maintenance/Status", "/v3/maintenance/status", pb.StatusRequest, pb.StatusResponse),
    Rpc(
        "/etcdserverpb.Maintenance/Defragment",
        "/v3/maintenance/defragment",
        pb.DefragmentRequest,
        pb.DefragmentResponse,
    ),
    Rpc("/etcdserverpb.Maintenance/HashKV", None, pb.HashKVRequest, pb.HashKVResponse),
    Rpc(
        "/etcdserverpb.Maintenance/MoveLeader",
        "/v3/maintenance/transfer-leadership",
        pb.MoveLeaderRequest,
        pb.MoveLeaderResponse,
    ),
    Rpc(
        "/etcdserverpb.Maintenance/Downgrade",
        "/v3/maintenance/downgrade",
        pb.DowngradeRequest,
        pb.DowngradeResponse,
    ),
    Rpc("/etcdserverpb.Lease/LeaseGrant", "/v3/lease/grant", pb.LeaseGrantRequest, pb.LeaseGrantResponse),
    Rpc("/etcdserverpb.Lease/LeaseRevoke", "/v3/lease/revoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse),
    Rpc(
        "/etcdserverpb.Lease/LeaseTimeToLive",
        "/v3/lease/timetolive",
        pb.LeaseTimeToLiveRequest,
        pb.LeaseTimeToLiveResponse,
    ),
    Rpc("/etcdserverpb.Lease/LeaseLeases", "/v3/lease/leases", pb.LeaseLeasesRequest, pb.LeaseLeasesResponse),
    Rpc("/v3lockpb.Lock/Lock", "/v3/lock/lock", v3lock_pb2.LockRequest, v3lock_pb2.LockResponse),
    Rpc("/v3lockpb.Lock/Unlock", "/v3/lock/unlock", v3lock_pb2.UnlockRequest, v3lock_pb2.UnlockResponse),
    *(
        Rpc(
            f"/v3electionpb.Election/{name}",
            f"/v3/election/{name.lower()}",
            getattr(v3election_pb2, f"{name}Request"),
            getattr(v3election_pb2, f"{name}Response"),
        )
        for name in ("Campaign", "Proclaim", "Leader", "Resign")
    ),
)
BY_REQUEST: dict[type[Message], Rpc] = {rpc.request: rpc for rpc in _TABLE}
"""The unary method that takes a message; the methods tested here are told apart by it."""

WATCH = Rpc("/etcdserverpb.Watch/Watch", "/v3/watch", pb.WatchRequest, pb.WatchResponse)
KEEP_ALIVE = Rpc(
    "/etcdserverpb.Lease/LeaseKeepAlive", "/v3/lease/keepalive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse
)
OBSERVE = Rpc(
    "/v3electionpb.Election/Observe",
    "/v3/election/observe",
    v3election_pb2.LeaderRequest,
    v3election_pb2.LeaderResponse,
)
SNAPSHOT = Rpc(
    "/etcdserverpb.Maintenance/Snapshot", "/v3/maintenance/snapshot", pb.SnapshotRequest, pb.SnapshotResponse
)
"""The streams; :mod:`tests.functional.streams` opens them."""


@dataclass(slots=True)
class Reply:
    """What came back: a gRPC status and a message, and over the gateway also the raw HTTP answer."""

    code: int
    text: str
    message: Message | None
    http_status: int = 0
    headers: dict[str, str] = field(default_factory=dict)  # lower-case names
    body: bytes = b""


class GrpcClient:
    """One gRPC connection."""

    def __init__(self, server: ServerProcess) -> None:
        options = [
            ("grpc.max_send_message_length", _MESSAGE_LIMIT),
            ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
            ("grpc.use_local_subchannel_pool", 1),  # else two clients of one process share a connection
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),  # a write is sent once
        ]
        if server.tls:
            files = (server.tls.ca, server.tls.client_key, server.tls.client_cert)
            credentials = grpc.ssl_channel_credentials(*(each.read_bytes() for each in files))
            self._channel = grpc.secure_channel(server.address, credentials, options)
        else:
            self._channel = grpc.insecure_channel(server.address, options)
        self._calls: dict[str, Any] = {}

    def call(self, request: Message, timeout_s: float = TIMEOUT_S) -> Reply:
        """Call the method that takes ``request`` and wait for its answer."""
        rpc = BY_REQUEST[type(request)]
        code, text, answer = self.call_raw(rpc.path, request.SerializeToString(), timeout_s)
        return Reply(code, text, None if answer is None else rpc.response.FromString(answer))

    def call_raw(self, path: str, request: bytes, timeout_s: float = TIMEOUT_S) -> tuple[int, str, bytes | None]:
        """Send ``request`` as one message to ``path``: status code, its text, and the answer's bytes if it was OK."""
        call = self._calls.get(path)
        if call is None:
            call = self._calls[path] = self._channel.unary_unary(path)
        try:
            return 0, "", call(request, timeout=timeout_s)
        except grpc.RpcError as error:
            return error.code().value[0], error.details() or "", None

    def open(self, path: str, requests: Iterator[bytes]) -> Any:
        """Open a stream: grpcio's call, an iterator of messages as bytes. ``requests`` is read on another thread."""
        return self._channel.stream_stream(path)(requests)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def connect_http(server: ServerProcess, timeout_s: float) -> http.client.HTTPConnection:
    """An HTTP/1.1 connection to a server, opened by its first request."""
    if server.tls:
        context = server.tls.client_context("http/1.1")
        return http.client.HTTPSConnection("127.0.0.1", server.port, timeout=timeout_s, context=context)
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout_s)


def to_json(request: Message) -> bytes:
    """A request as the gateway takes it."""
    return json.dumps(json_format.MessageToDict(request, preserving_proto_field_name=True)).encode()


class GatewayClient:
    """One HTTP/1.1 keep-alive connection to the JSON gateway."""

    def __init__(self, server: ServerProcess, timeout_s: float = TIMEOUT_S) -> None:
        self._connection = connect_http(server, timeout_s)
        self._aborted = False

    def call(self, request: Message) -> Reply:
        """Call the method that takes ``request`` through the gateway.

        Raises:
            ValueError: the gateway of 3.5.1 has no path to this method.
        """
        rpc = BY_REQUEST[type(request)]
        if rpc.http_path is None:
            raise ValueError(f"{rpc.path} cannot be reached over the gateway")
        status, headers, answer = self.call_raw("POST", rpc.http_path, to_json(request))
        reply = Reply(0, "", None, status, headers, answer)
        try:
            if status == 200:
                reply.message = json_format.Parse(answer, rpc.response())
            else:
                error = json.loads(answer)
                reply.code, reply.text = error["code"], error["message"]
        except (json_format.ParseError, ValueError, KeyError, TypeError) as error:
            reply.code, reply.text = -1, f"unreadable answer: {error}"
        return reply

    def call_raw(
        self, verb: str, path: str, body: bytes | None = None, headers: Sequence[tuple[str, str]] = ()
    ) -> tuple[int, dict[str, str], bytes]:
        """One HTTP exchange: status, headers by lower-case name, body. A closed connection is opened anew."""
        try:
            return self._exchange(verb, path, body, headers)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            if self._aborted:
                raise
            self._connection.close()
            return self._exchange(verb, path, body, headers)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def abort(self) -> None:
        """Break the connection from another thread: the call that waits on it fails."""
        self._aborted = True
        if self._connection.sock is not None:
            with suppress(OSError):  # the server was first
                self._connection.sock.shutdown(socket.SHUT_RDWR)

    def _exchange(
        self, verb: str, path: str, body: bytes | None, headers: Sequence[tuple[str, str]]
    ) -> tuple[int, dict[str, str], bytes]:
        self._connection.request(verb, path, body, dict(headers))
        response = self._connection.getresponse()
        answer = response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, answer
