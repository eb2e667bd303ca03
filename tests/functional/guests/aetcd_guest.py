"""What a user does with ``aetcd``, over gRPC: ``python aetcd_guest.py HOST PORT``, one line of JSON for each step.

Our own messages are loaded in the same process: both packages bring etcd's message types under etcd's names.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from twistedkv.pb import rpc_pb2  # isort: skip  before theirs, which is the harder order
import aetcd
from aetcd.rpc import rpc_pb2 as their_pb2


def say(step: str, *facts: Any) -> None:
    """One line of the protocol."""
    sys.stdout.write(json.dumps([step, *facts], default=repr) + "\n")


def pair(kv: Any) -> Any:
    """A key and its value as aetcd gives them."""
    return None if kv is None else [kv.key.decode(), kv.value.decode(), kv.version]


async def visit(host: str, port: int) -> None:
    """All of it."""
    async with aetcd.Client(host, port) as client:
        say("get of nothing", pair(await client.get(b"guest")))
        await client.put(b"guest", b"one")
        replaced = await client.put(b"guest", b"two", prev_kv=True)
        say("put", pair(replaced.prev_kv))
        say("get", pair(await client.get(b"guest")))
        await client.put(b"guest/a", b"1")
        await client.put(b"guest/b", b"2")
        prefix = await client.get_prefix(b"guest/", sort_order="descend")
        say("get_prefix", [pair(kv) for kv in prefix])
        say("replace", await client.replace(b"guest", b"two", b"three"), await client.replace(b"guest", b"x", b"y"))
        done, answers = await client.transaction(
            compare=[client.transactions.value(b"guest") == b"three", client.transactions.version(b"guest") > 1],
            success=[client.transactions.put(b"guest", b"four"), client.transactions.get(b"guest/a")],
            failure=[client.transactions.delete(b"guest")],
        )
        say("transaction", done, len(answers))

        seen: list[Any] = []
        watch = await client.watch_prefix(b"watched/", prev_kv=True)
        for value in (b"1", b"2"):
            await client.put(b"watched/x", value)
        await client.delete(b"watched/x")
        async for event in watch:
            seen.append([event.kind, event.kv.key.decode(), event.kv.value.decode()])
            if len(seen) == 3:
                break
        await watch.cancel()
        say("watch", seen)

        lease = await client.lease(300, 4711)
        await client.put(b"leased", b"x", lease=lease)
        info = await client.get_lease_info(4711)
        say("lease", lease.id, info.grantedTTL, [key.decode() for key in info.keys], (await lease.refresh()).TTL)
        await lease.revoke()
        say("revoked", pair(await client.get(b"leased")))

        first, second = client.lock(b"lock", ttl=60), client.lock(b"lock", ttl=60)
        say("lock", await first.acquire(), await second.acquire(timeout=0))
        waiting = asyncio.create_task(second.acquire(timeout=20))
        say("unlock", await first.release(), await waiting, await second.is_acquired())
        await second.release()

        try:
            await client.compact(10**6)
        except aetcd.ClientError as error:
            say("compact", str(error))
        theirs = their_pb2.PutRequest(key=b"k", value=b"v", lease=7).SerializeToString()
        say("messages", rpc_pb2.PutRequest.FromString(theirs).lease)


if __name__ == "__main__":
    asyncio.run(visit(sys.argv[1], int(sys.argv[2])))
