"""Service discovery as users do it: a key on a lease, a watcher on the prefix, and a service that is killed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.message import Message
from twisted.trial.unittest import SynchronousTestCase

from tests.functional.clients import WATCH, GrpcClient
from tests.functional.processes import ROOT, TwistedkvProcess
from tests.functional.streams import GrpcStream
from twistedkv.pb import kv_pb2
from twistedkv.pb import rpc_pb2 as pb

_TTL_S = 2
_TIMEOUT_S = 20.0


class RegistrationTests(SynchronousTestCase):
    """Two services under one prefix."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.server = TwistedkvProcess(Path(scratch.name))
        self.addCleanup(self.server.stop)
        self.server.start()

    def begin_service(self, name: str) -> subprocess.Popen[str]:
        """A service in a process of its own, registered and renewed once; killed when the test ends."""
        program = str(Path(__file__).parent / "guests" / "service_guest.py")
        service = subprocess.Popen(
            [sys.executable, program, self.server.address, name, str(_TTL_S)],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(ROOT)},
        )

        def end() -> None:
            service.kill()
            service.communicate()

        self.addCleanup(end)
        assert service.stdout is not None
        self.assertEqual(service.stdout.readline(), "renewed\n")
        return service

    def test_a_killed_service_is_gone_within_its_ttl_and_a_second(self) -> None:
        """The watcher is told of both services, and of the end of the one that is killed, in time; the other stays."""
        client = GrpcClient(self.server)
        self.addCleanup(client.close)
        create = pb.WatchCreateRequest(key=b"services/", range_end=b"services0")
        stream = GrpcStream(client, WATCH, [pb.WatchRequest(create_request=create)])
        self.addCleanup(stream.close)
        self.assertTrue(stream.wait_for(lambda got: len(got) == 1, _TIMEOUT_S))
        services = [self.begin_service(f"services/{number}") for number in range(2)]
        services[0].kill()
        killed_s = time.monotonic()
        self.assertTrue(stream.wait_for(lambda got: bool(_deleted(got)), _TIMEOUT_S), "nobody is told")
        took_s = time.monotonic() - killed_s
        self.assertEqual(_deleted(stream.messages), [b"services/0"])
        self.assertLessEqual(took_s, _TTL_S + 1)
        left = client.call(pb.RangeRequest(key=b"services/", range_end=b"services0")).message
        assert isinstance(left, pb.RangeResponse)
        self.assertEqual([kv.key for kv in left.kvs], [b"services/1"])


def _deleted(messages: Sequence[Message]) -> list[bytes]:
    return [event.kv.key for each in messages for event in each.events if event.type == kv_pb2.Event.DELETE]
