"""The Watch service: streams of requests in, streams of events out. No rules in here.

Source: etcd ``server/etcdserver/api/v3rpc/watch.go``.
"""

from __future__ import annotations

from typing import Protocol

from twistedkv.pb import rpc_pb2
from twistedkv.pb.rpc_pb2 import WatchRequest
from twistedkv.protocols.rpc import Access, Call, Method, service_methods
from twistedkv.watch import WatchHub
from twistedkv.watchstream import WatchStream, open_stream


class WatchMember(Protocol):
    """What this service needs of the member; see :class:`twistedkv.server.Member`."""

    hub: WatchHub


class WatchService:
    """Watch.

    Args:
        member: whose keys are watched.
    """

    def __init__(self, member: WatchMember) -> None:
        self._member = member

    def methods(self) -> list[Method]:
        """The methods of this service, for the method table."""
        return service_methods(rpc_pb2.DESCRIPTOR.services_by_name["Watch"], {"Watch": (Access.KEYS, self.watch)})

    def watch(self, call: Call) -> None:
        """Watch.Watch. A client that closes its side goes on to be told, as etcd has it."""
        stream = open_stream(self._member.hub, call)

        def on_message(message: bytes) -> None:
            try:
                _carry_out(WatchRequest.FromString(message), stream)
            except BaseException:
                stream.close()  # the call ends with it, and nobody says so
                raise
            if not call.writable:
                call.pause()  # who does not read answers cannot ask for more

        def on_writable() -> None:
            stream.room()
            if call.writable:
                call.resume()

        call.on_message = on_message
        call.on_cancel = stream.close
        call.on_writable = on_writable


def _carry_out(request: WatchRequest, stream: WatchStream) -> None:
    match request.WhichOneof("request_union"):
        case "create_request":
            stream.create(request.create_request)
        case "cancel_request":
            stream.cancel(request.cancel_request.watch_id)
        case "progress_request":
            stream.progress()
