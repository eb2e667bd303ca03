"""One client with everything that the sequences need: both doors, streams, observers, and calls that wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from google.protobuf.message import Message

from tests.functional.clients import KEEP_ALIVE, OBSERVE, WATCH, GatewayClient, GrpcClient, Reply, Rpc
from tests.functional.operations import Door, Step
from tests.functional.processes import ServerProcess
from tests.functional.streams import GatewayStream, GrpcStream, Stream
from twistedkv.pb import kv_pb2
from twistedkv.pb import rpc_pb2 as pb

_PENDING_TIMEOUT_S = 300.0


class HarnessError(Exception):
    """The reference did not do what this module expects of etcd: the test is wrong, not the subject."""


Falsify = Callable[[Message], None]


class Client:
    """All connections to one server: unary calls over both doors, watch streams, observers, calls that wait.

    Args:
        server: a running one.
        falsify: changes what comes, to examine the comparison.
    """

    def __init__(self, server: ServerProcess, falsify: Falsify | None = None) -> None:
        self.server = server
        self.grpc = GrpcClient(server)
        self._gateway = GatewayClient(server)
        self._falsify = falsify
        self._pool = ThreadPoolExecutor(16)
        self._waiting: list[GatewayClient] = []
        self.streams: dict[int, Stream] = {}
        self.observers: dict[int, Stream] = {}

    def send(self, step: Step) -> Reply:
        """One unary call."""
        reply = (self.grpc if step.door is Door.GRPC else self._gateway).call(step.request)
        self._change(reply.message)
        return reply

    def begin(self, step: Step) -> Future[Reply]:
        """A unary call that may take as long as it likes."""
        if step.door is Door.GRPC:
            return self._pool.submit(self.grpc.call, step.request, _PENDING_TIMEOUT_S)
        client = GatewayClient(self.server, _PENDING_TIMEOUT_S)
        self._waiting.append(client)
        return self._pool.submit(client.call, step.request)

    def watch(self, number: int) -> Stream:
        """The gRPC watch stream with this number, opened if it is not there."""
        stream = self.streams.get(number)
        if stream is None:
            stream = self.streams[number] = GrpcStream(self.grpc, WATCH, falsify=self._falsify)
        return stream

    def open_gateway(self, number: int, requests: Sequence[Message]) -> Stream:
        """A watch stream over the gateway."""
        stream = self.streams[number] = GatewayStream(self.server, WATCH, requests, self._falsify)
        return stream

    def observe(self, number: int, door: Door, request: Message) -> Stream:
        """An observer of an election."""
        stream = self.observers[number] = self._open(door, OBSERVE, request)
        return stream

    def keep_alive(self, door: Door, leases: Sequence[int]) -> Stream:
        """A stream that keeps these leases alive once and ends."""
        requests = [pb.LeaseKeepAliveRequest(ID=lease) for lease in leases]
        if door is Door.GRPC:
            return GrpcStream(self.grpc, KEEP_ALIVE, requests, ends=True, falsify=self._falsify)
        return GatewayStream(self.server, KEEP_ALIVE, requests, self._falsify)

    def keys(self, prefix: bytes) -> list[kv_pb2.KeyValue]:
        """The keys under a prefix that ends in "/", oldest first."""
        request = pb.RangeRequest(key=prefix, range_end=prefix[:-1] + b"0", sort_target=pb.RangeRequest.CREATE)
        request.sort_order = pb.RangeRequest.ASCEND
        answer = self.grpc.call(request).message
        if not isinstance(answer, pb.RangeResponse):
            raise HarnessError(f"{self.server.label} does not read its keys")
        return list(answer.kvs)

    def close(self) -> None:
        """Leave every stream and every call, and close the connections."""
        for stream in (*self.streams.values(), *self.observers.values()):
            stream.close()
        self.grpc.close()
        for client in self._waiting:
            client.abort()
        self._pool.shutdown()
        self._gateway.close()

    def _open(self, door: Door, rpc: Rpc, request: Message) -> Stream:
        if door is Door.GRPC:
            return GrpcStream(self.grpc, rpc, [request], ends=True, falsify=self._falsify)
        return GatewayStream(self.server, rpc, [request], self._falsify)

    def _change(self, message: Message | None) -> None:
        if message is not None and self._falsify is not None:
            self._falsify(message)
