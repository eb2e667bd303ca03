"""The gRPC health service."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.calls import RecordedCall
from twistedkv.errors import Code, KVError
from twistedkv.pb.health_pb2 import HealthCheckRequest, HealthCheckResponse
from twistedkv.protocols.services.health import HealthService


class HealthServiceTests(SynchronousTestCase):
    """Check and Watch."""

    def call(self, method: str, service: str) -> RecordedCall:
        """A call for one service name, carried out."""
        methods = {each.path.rpartition("/")[2]: each for each in HealthService().methods()}
        return RecordedCall(methods[method], HealthCheckRequest(service=service).SerializeToString()).run()

    def status(self, call: RecordedCall) -> int:
        """The one status that was sent."""
        (message,) = call.sent
        return HealthCheckResponse.FromString(message).status

    def test_the_server_as_a_whole_serves(self) -> None:
        """The empty name is all that a probe has to ask for."""
        call = self.call("Check", "")
        self.assertTrue(call.done)
        self.assertEqual(self.status(call), HealthCheckResponse.SERVING)

    def test_other_names_are_not_known(self) -> None:
        """As with etcd, also not those of services that are there."""
        call = self.call("Check", "etcdserverpb.KV")
        assert isinstance(call.error, KVError)
        self.assertEqual((call.error.code, str(call.error)), (Code.NOT_FOUND, "unknown service"))

    def test_a_watch_stays_open(self) -> None:
        """The status comes at once, and nothing ends the stream; an unknown name has a status of its own."""
        for service, expected in (("", HealthCheckResponse.SERVING), ("x", HealthCheckResponse.SERVICE_UNKNOWN)):
            call = self.call("Watch", service)
            self.assertEqual(self.status(call), expected)
            self.assertFalse(call.done)
