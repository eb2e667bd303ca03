"""What a user does with ``etcd3gw``, over the JSON gateway: ``python etcd3gw_guest.py HOST PORT CA CERT KEY``."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from etcd3gw.client import Etcd3Client

_TIMEOUT_S = 20


def say(step: str, *facts: Any) -> None:
    """One line of the protocol."""
    sys.stdout.write(json.dumps([step, *facts], default=repr) + "\n")


def visit(client: Etcd3Client) -> None:
    """All of it."""
    say("get of nothing", client.get("guest"))
    say("put", client.put("guest", "one"), client.put("guest", "two"))
    say("get", client.get("guest"), client.get("guest", metadata=True)[0][1]["version"])
    say("create", client.create("guest", "x"), client.create("guest/a", "1"), client.put("guest/b", "2"))
    say("get_prefix", [[value, kv["key"]] for value, kv in client.get_prefix("guest/", sort_order="descend")])
    say("replace", client.replace("guest", "two", "three"), client.replace("guest", "x", "y"))
    say("delete", client.delete("guest/b"), client.delete("nothing"), client.delete_prefix("guest/"))

    seen = []
    events, cancel = client.watch_prefix("watched/")
    client.put("watched/x", "1")
    client.put("watched/x", "2")
    client.delete("watched/x")
    for event in events:
        seen.append([event.get("type", "PUT"), event["kv"]["key"], event["kv"].get("value", "")])
        if len(seen) == 3:
            cancel()
    say("watch", seen)

    lease = client.lease(ttl=300)
    say("lease", client.put("leased", "x", lease=lease), lease.keys(), 295 <= lease.ttl() <= 300, lease.refresh())
    say("revoked", lease.revoke(), client.get("leased"))

    lock = client.lock(id="lock", ttl=60)
    say("lock", lock.acquire(), client.lock(id="lock", ttl=60).acquire(), lock.is_acquired(), lock.refresh())
    say("unlock", lock.release(), lock.is_acquired())

    once: list[Any] = []
    watcher = threading.Thread(target=lambda: once.append(client.watch_once("once", timeout=_TIMEOUT_S)["kv"]["value"]))
    watcher.start()
    while watcher.is_alive():  # it does not say when its watch is there
        client.put("once", "now")
        watcher.join(0.05)
    say("watch_once", once)
    say("status", client.status()["version"].startswith("3.5."), [each["name"] for each in client.members()])
    try:
        client.transaction({"success": [{"request_range": {}}]})
    except Exception as error:  # which class it is differs between its releases
        say("error", "key is not provided" in str(error) or "Bad Request" in str(error), type(error).__name__)


if __name__ == "__main__":
    host, port, ca, certificate, key = sys.argv[1:]
    visit(Etcd3Client(host, int(port), "https", ca, key, certificate, timeout=_TIMEOUT_S))
