"""The gRPC health service: whether this server serves, for load balancers and probes.

As in etcd 3.5, the empty name stands for all services and is the only one known, and it is SERVING for as long as the
server answers at all: alarms, a missing leader and defragmentation do not change it, ``/readyz`` tells those apart.
Sources: grpc/grpc ``doc/health-checking.md``; etcd ``server/etcdserver/api/v3rpc/grpc.go``, Server.
"""

from __future__ import annotations

from twistedkv.errors import Code, RPCError
from twistedkv.pb import health_pb2
from twistedkv.pb.health_pb2 import HealthCheckRequest, HealthCheckResponse
from twistedkv.protocols.rpc import Access, Call, Method, service_methods

_SERVING = HealthCheckResponse(status=HealthCheckResponse.SERVING).SerializeToString()
_SERVICE_UNKNOWN = HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN).SerializeToString()


class HealthService:
    """Check and Watch."""

    def methods(self) -> list[Method]:
        """The methods of this service, for the method table."""
        return service_methods(
            health_pb2.DESCRIPTOR.services_by_name["Health"],
            {"Check": (Access.OPEN, self.check), "Watch": (Access.OPEN, self.watch)},
        )

    def check(self, call: Call) -> None:
        """Health.Check.

        Raises:
            RPCError: there is no such service.
        """
        if HealthCheckRequest.FromString(call.message).service:
            raise RPCError(Code.NOT_FOUND, "unknown service")
        call.reply(_SERVING)

    def watch(self, call: Call) -> None:
        """Health.Watch: the status now; it does not change before the connection ends, so nothing follows."""
        call.send(_SERVICE_UNKNOWN if HealthCheckRequest.FromString(call.message).service else _SERVING)
