"""What a user does with grpcio and stubs that ``grpc_tools.protoc`` made of our .proto files.

``python stubs_guest.py HOST PORT CA CERT KEY``, with the directory of the stubs on ``PYTHONPATH`` and twistedkv not:
the stubs register etcd's messages in protobuf's default pool, as any user's do.
"""

from __future__ import annotations

import json
import queue
import sys
from pathlib import Path
from typing import Any

import grpc

from twistedkv.pb import rpc_pb2 as pb
from twistedkv.pb import rpc_pb2_grpc as stubs
from twistedkv.pb import v3election_pb2 as election
from twistedkv.pb import v3election_pb2_grpc as election_stubs
from twistedkv.pb import v3lock_pb2 as lock
from twistedkv.pb import v3lock_pb2_grpc as lock_stubs


def say(step: str, *facts: Any) -> None:
    """One line of the protocol."""
    sys.stdout.write(json.dumps([step, *facts], default=repr) + "\n")


def visit(channel: grpc.Channel) -> None:
    """All of it."""
    kv, leases = stubs.KVStub(channel), stubs.LeaseStub(channel)
    put = kv.Put(pb.PutRequest(key=b"guest", value=b"one"))
    say("put", put.header.revision)
    put = kv.Put(pb.PutRequest(key=b"guest", value=b"two", prev_kv=True))
    say("put again", put.prev_kv.value.decode(), kv.Range(pb.RangeRequest(key=b"guest")).kvs[0].version)
    compare = pb.Compare(key=b"guest", target=pb.Compare.VALUE, result=pb.Compare.EQUAL, value=b"two")
    success = pb.RequestOp(request_put=pb.PutRequest(key=b"guest", value=b"three"))
    say("txn", kv.Txn(pb.TxnRequest(compare=[compare], success=[success])).succeeded)

    requests: queue.SimpleQueue[pb.WatchRequest | None] = queue.SimpleQueue()
    create = pb.WatchCreateRequest(key=b"guest", start_revision=put.header.revision, prev_kv=True)
    requests.put(pb.WatchRequest(create_request=create))
    watch = stubs.WatchStub(channel).Watch(iter(requests.get, None))
    events = []
    for response in watch:
        events += [[each.kv.value.decode(), each.prev_kv.value.decode()] for each in response.events]
        if response.created:
            kv.Put(pb.PutRequest(key=b"guest", value=b"four"))
        if len(events) == 3:
            requests.put(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=response.watch_id)))
        if response.canceled:
            break
    requests.put(None)
    watch.cancel()
    say("watch", events)

    granted = leases.LeaseGrant(pb.LeaseGrantRequest(ID=11, TTL=300))
    kv.Put(pb.PutRequest(key=b"leased", lease=11))
    keep = leases.LeaseKeepAlive(iter([pb.LeaseKeepAliveRequest(ID=11), pb.LeaseKeepAliveRequest(ID=12)]))
    say("lease", granted.TTL, [[each.ID, each.TTL] for each in keep])
    keys = leases.LeaseTimeToLive(pb.LeaseTimeToLiveRequest(ID=11, keys=True)).keys
    say("keys", [key.decode() for key in keys])

    locks, elections = lock_stubs.LockStub(channel), election_stubs.ElectionStub(channel)
    leases.LeaseGrant(pb.LeaseGrantRequest(ID=22, TTL=300))
    held = locks.Lock(lock.LockRequest(name=b"lock", lease=11))
    waiting = locks.Lock.future(lock.LockRequest(name=b"lock", lease=22))
    locks.Unlock(lock.UnlockRequest(key=held.key))
    say("lock", held.key.decode(), waiting.result(timeout=20).key.decode())
    leader = elections.Campaign(election.CampaignRequest(name=b"election", lease=11, value=b"me")).leader
    observer = elections.Observe(election.LeaderRequest(name=b"election"))
    values = [next(observer).kv.value.decode()]
    elections.Proclaim(election.ProclaimRequest(leader=leader, value=b"still me"))
    values.append(next(observer).kv.value.decode())
    observer.cancel()
    say("election", values, leader.key.decode())
    leases.LeaseRevoke(pb.LeaseRevokeRequest(ID=11))
    say("revoked", kv.Range(pb.RangeRequest(key=b"leased")).count)
    try:
        elections.Leader(election.LeaderRequest(name=b"election"))
    except grpc.RpcError as error:
        say("no leader", error.code().name, error.details())


if __name__ == "__main__":
    host, port, *files = sys.argv[1:]
    ca, certificate, private_key = (Path(each).read_bytes() for each in files)
    credentials = grpc.ssl_channel_credentials(ca, private_key, certificate)
    with grpc.secure_channel(f"{host}:{port}", credentials, [("grpc.enable_http_proxy", 0)]) as secure:
        visit(secure)
