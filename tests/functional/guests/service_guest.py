"""A service that registers itself: ``python service_guest.py ADDRESS KEY TTL``, without TLS, until it is killed.

It writes a line when its key is there and its lease was renewed, and goes on renewing three times in each TTL.
"""

from __future__ import annotations

import queue
import sys

import grpc

from twistedkv.pb import rpc_pb2 as pb


def serve(channel: grpc.Channel, key: bytes, ttl_s: int) -> None:
    """Register and keep the registration alive."""

    def call(path: str, request: bytes) -> bytes:
        answer: bytes = channel.unary_unary(path)(request, timeout=10)
        return answer

    grant = pb.LeaseGrantRequest(TTL=ttl_s).SerializeToString()
    lease = pb.LeaseGrantResponse.FromString(call("/etcdserverpb.Lease/LeaseGrant", grant)).ID
    call("/etcdserverpb.KV/Put", pb.PutRequest(key=key, value=b"here", lease=lease).SerializeToString())
    renewal = pb.LeaseKeepAliveRequest(ID=lease).SerializeToString()
    pauses: queue.Queue[None] = queue.Queue()
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    requests.put(renewal)
    for _ in channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")(iter(requests.get, b"")):
        sys.stdout.write("renewed\n")
        sys.stdout.flush()
        try:
            pauses.get(timeout=ttl_s / 3)  # nothing ever comes
        except queue.Empty:
            requests.put(renewal)


if __name__ == "__main__":
    address, name, ttl = sys.argv[1:]
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as plain:
        serve(plain, name.encode(), int(ttl))
