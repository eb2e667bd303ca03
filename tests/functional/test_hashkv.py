"""HashKV against real etcd: equal histories give equal hashes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.clients import GrpcClient
from tests.functional.processes import MISSING_ETCD, EtcdProcess
from tests.requests import Requests
from tests.storage.world import World, outcome, passes_check
from twistedkv.pb.rpc_pb2 import CompactionRequest, HashKVRequest, HashKVResponse, PutRequest, RangeRequest, TxnRequest
from twistedkv.storage.mvcc import hash_kv

_SEEDS = [int(seed) for seed in os.environ.get("TWISTEDKV_HASHKV_SEEDS", "1,2,3").split(",")]
_STEPS = 120


class HashKVTests(SynchronousTestCase):
    """The store alone, without a server, next to etcd 3.5.1."""

    skip = MISSING_ETCD

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.directory = Path(scratch.name)

    def test_equal_histories_hash_equally(self) -> None:
        """§9: after every few random writes and compactions, all revisions that can be hashed hash as in etcd."""
        for seed in _SEEDS:
            etcd = EtcdProcess(self.directory / str(seed))
            self.addCleanup(etcd.stop)
            etcd.start()
            client = GrpcClient(etcd)
            self.addCleanup(client.close)
            self.run_history(client, Random(seed))
            client.close()
            etcd.stop()

    def run_history(self, client: GrpcClient, dice: Random) -> None:
        """Send one random history to both, and compare hashes on the way."""
        world, requests = World(), Requests(dice)
        for step in range(_STEPS):
            requests.revision = world.store.revision
            request = requests.any()
            if isinstance(request, RangeRequest) or (isinstance(request, TxnRequest) and not passes_check(request)):
                continue
            if "lease" in str(request) or "ignore_" in str(request):
                continue  # leases are not the same on both sides, and etcd panics on some ignore_value
            if isinstance(request, CompactionRequest):
                request.physical = True
            reply = client.call(request)
            done = outcome(world.send, request)
            refusal = "" if isinstance(done, tuple) else done.text
            self.assertEqual(reply.text, refusal, request)
            if step % 5 == 0:
                self.compare_hashes(client, world)
        client.call(PutRequest(key=b"last"))
        world.send(PutRequest(key=b"last"))
        self.compare_hashes(client, world)

    def compare_hashes(self, client: GrpcClient, world: World) -> None:
        """The hash of today and of each revision since the last compaction."""
        world.flush()
        store = world.store
        for revision in (0, *range(max(store.compacted, store.revision - 5, 0) + 1, store.revision + 1)):
            answer = client.call(HashKVRequest(revision=revision)).message
            assert isinstance(answer, HashKVResponse)
            ours = hash_kv(world.backend, revision or store.revision, store.compacted, chunk=7)
            self.assertEqual((answer.hash, answer.compact_revision), (ours, store.compacted), f"at {revision}")
