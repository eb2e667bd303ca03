"""Servers as child processes: what a test sees when one does not come up, is killed, or stops."""

from __future__ import annotations

import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.clients import GrpcClient
from tests.functional.processes import MISSING_ETCD, EtcdProcess, ServerFailed, free_ports
from twistedkv.pb import rpc_pb2 as pb


class ServerProcessTests(SynchronousTestCase):
    """By the example of real etcd."""

    skip = MISSING_ETCD

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.directory = Path(scratch.name)

    def test_a_server_that_does_not_start_shows_its_log(self) -> None:
        """The failure of a start names the server, its exit status and what it said."""
        server = EtcdProcess(self.directory, options=["--election-timeout", "1"])
        with self.assertRaisesRegex(ServerFailed, r"(?s)etcd 3.5.1 did not start \(exit status 1\).*election-timeout"):
            server.start()
        server.stop()
        self.assertRaises(ServerFailed, getattr, server, "pid")

    def test_data_outlives_the_process(self) -> None:
        """After a kill and after a restart the server is another process with the same data at the same address."""
        server = EtcdProcess(self.directory)
        self.addCleanup(server.stop)
        server.start()
        pids = [server.pid]
        client = GrpcClient(server)
        self.addCleanup(client.close)
        self.assertEqual(client.call(pb.PutRequest(key=b"a", value=b"1")).code, 0)
        for again in (server.restart, lambda: (server.kill9(), server.start())):
            again()
            pids.append(server.pid)
            fresh = GrpcClient(server)
            answer = fresh.call(pb.RangeRequest(key=b"a")).message
            fresh.close()
            assert isinstance(answer, pb.RangeResponse)
            self.assertEqual(answer.kvs[0].value, b"1")
        self.assertEqual(len(set(pids)), 3)
        self.assertGreater(server.cpu_seconds(), 0)
        self.assertGreater(server.rss_bytes(), 1 << 20)

    def test_free_ports_are_different(self) -> None:
        """Ports that are asked for together do not collide."""
        self.assertEqual(len(set(free_ports(50))), 50)
