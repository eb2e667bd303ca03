"""A full disk under one of three members: it says so, the others go on, and it comes back when there is room."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.functional.clients import GrpcClient
from tests.functional.cluster import ClusterOfProcesses, until
from tests.functional.processes import MISSING_ETCD, ServerProcess, TwistedkvProcess
from twistedkv.pb import rpc_pb2 as pb

OPTIONS = ("--heartbeat-interval", "50", "--election-timeout", "500")
NO_SPACE = (8, "etcdserver: mvcc: database space exceeded")
DISK_BYTES = 512 << 20
_LEFT_BYTES = 1 << 20  # when the disk is almost full
_VALUE = bytes(1 << 20)
_MOST_PUTS = 200  # a segment of the log is 64 MiB, and was allocated before
_FULL_S = 60.0


class FullDiskTests(SynchronousTestCase):
    skip = MISSING_ETCD

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.cluster = ClusterOfProcesses(Path(directory.name), [TwistedkvProcess] * 3, OPTIONS)
        self.small = self.cluster.members[0]
        self.disk = self.small.directory / "data"
        self.disk.mkdir(parents=True)
        options = f"size={DISK_BYTES},mode=0700"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.disk)],
            capture_output=True,
            text=True,
            check=False,
        )
        if mounted.returncode:
            raise SkipTest(f"only root can mount a small disk: {mounted.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", str(self.disk)], check=True)
        self.addCleanup(self.cluster.kill_all)
        self.acknowledged: list[bytes] = []
        self.cluster.start()

    def test_disk_of_a_member_is_full(self) -> None:
        """As a follower and as the leader, which hands over; nothing that was acknowledged is lost."""
        cluster, small = self.cluster, self.small
        others = [each for each in cluster.members if each is not small]
        self.lead(others[0])
        self.fill()
        self.write_until_full(others[0])
        for other in others:
            self.put(other, b"small")
        self.make_room()
        self.wait_until_it_writes()
        cluster.wait_until_equal()

        self.lead(small)
        self.fill()
        self.write_until_full(others[0])
        until("another one leads", lambda: cluster.leader() in others)
        self.assertIn("no room for the log of this leader: asking", small.log_since())
        for other in others:
            self.put(other, b"small")
        small.kill9()
        self.make_room()
        small.start()
        self.wait_until_it_writes()
        cluster.wait_until_equal()
        for member in cluster.members:
            self.assertEqual(self.missing(member), [])
            self.assertNotIn("Traceback", member.log_since())

    # --- steps -------------------------------------------------------------------------------------

    def lead(self, target: ServerProcess) -> None:
        """Have this member lead."""
        if self.cluster.leader() is not target:
            self.cluster.ctl("move-leader", f"{self.cluster.id_of(target):x}")
        until("it leads", lambda: self.cluster.leader() is target)

    def fill(self) -> None:
        """Leave next to nothing of the disk."""
        room = os.statvfs(self.disk)
        with (self.disk / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, room.f_bavail * room.f_frsize - _LEFT_BYTES)

    def make_room(self) -> None:
        """Give it back."""
        (self.disk / "ballast").unlink()

    def write_until_full(self, through: ServerProcess) -> None:
        """Write through another member until the one without room refuses writes as etcd does."""
        with contextlib.closing(GrpcClient(through)) as client, contextlib.closing(GrpcClient(self.small)) as full:
            deadline_s = time.monotonic() + _FULL_S
            for number in range(_MOST_PUTS):
                self.put_by(client, b"%d" % number, _VALUE)
                reply = full.call(pb.PutRequest(key=b"probe"), timeout_s=0.2)
                if (reply.code, reply.text) == NO_SPACE:
                    return
                self.assertLess(time.monotonic(), deadline_s, reply)
        self.fail("the disk is not full")

    def wait_until_it_writes(self) -> None:
        """Until it takes writes again."""
        with contextlib.closing(GrpcClient(self.small)) as client:
            until("it takes writes", lambda: client.call(pb.PutRequest(key=b"probe"), timeout_s=2.0).code == 0)

    def put(self, member: ServerProcess, value: bytes) -> None:
        """One acknowledged write."""
        with contextlib.closing(GrpcClient(member)) as client:
            self.put_by(client, member.name.encode(), value)

    def put_by(self, client: GrpcClient, name: bytes, value: bytes) -> None:
        """The same over a connection that is there."""
        key = b"%d/%b" % (len(self.acknowledged), name)
        reply = client.call(pb.PutRequest(key=key, value=value))
        self.assertEqual(reply.code, 0, reply.text)
        self.acknowledged.append(key)

    def missing(self, member: ServerProcess) -> list[bytes]:
        """What was acknowledged and is not there."""
        with contextlib.closing(GrpcClient(member)) as client:
            reply = client.call(pb.RangeRequest(key=b"\x00", range_end=b"\x00", keys_only=True))
        assert isinstance(reply.message, pb.RangeResponse), reply
        found = {kv.key for kv in reply.message.kvs}
        return [key for key in self.acknowledged if key not in found]
