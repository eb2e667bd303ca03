"""The client of python-etcd 0.4.5, over mutual TLS: all that it offers, and what it makes of answers and errors."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime
from typing import Any

from tests.functional.etcdctlv2 import wait_for_watchers
from tests.functional.processes import free_ports
from tests.functional.pythonetcd import MISSING_CLIENT, Aside, PythonEtcdCase

if MISSING_CLIENT is None:
    import etcd
    import etcd.auth


class ClientTests(PythonEtcdCase):
    """What a user of the client does."""

    skip = MISSING_CLIENT

    def test_keys(self) -> None:
        """Keys are written and read with all that etcd says of them, whatever their bytes are."""
        key = self.root + "/key"
        made = self.client.write(key, "one")
        self.assertEqual((made.action, made.key, made.value, made.newKey, made.dir), ("set", key, "one", True, False))
        self.assertEqual(made.createdIndex, made.modifiedIndex)
        self.assertEqual(made.etcd_index, made.modifiedIndex)
        again = self.client.set(key, "two")
        self.assertEqual((again.newKey, again._prev_node.value), (False, "one"))
        self.assertEqual(again.modifiedIndex, made.modifiedIndex + 1)
        self.assertEqual(again.createdIndex, again.modifiedIndex)  # set makes it anew
        found = self.client.read(key, quorum=True)
        self.assertEqual((found.action, found.value, found.ttl, found.expiration), ("get", "two", None, None))
        self.assertGreaterEqual(found.raft_index, found.etcd_index)
        self.assertEqual(self.client.get(key), found)
        self.assertIn(key, self.client)
        self.assertNotIn(self.root + "/missing", self.client)
        with self.assertRaises(etcd.EtcdKeyNotFound) as missed:
            self.client.get(self.root + "/missing")
        self.assertEqual(missed.exception.payload["index"], again.modifiedIndex)
        for name, value in (("ключ", "значение"), ("a b+c", "a=b&c=d+e %"), ("empty", ""), ("big", "x" * 500_000)):
            written = self.client.write(f"{self.root}/{name}", value)
            self.assertEqual((written.key, written.value), (f"{self.root}/{name}", value))
            self.assertEqual(self.client.get(f"{self.root}/{name}").value, value)
        self.assertEqual(self.client.write(self.root + "//a/../b/", "x").key, self.root + "/b")

    def test_comparisons(self) -> None:
        """A write or a deletion with a condition is done if it holds, and else changes nothing."""
        key = self.root + "/key"
        with self.assertRaises(etcd.EtcdKeyNotFound):
            self.client.write(key, "x", prevExist=True)
        made = self.client.write(key, "a", prevExist=False)
        self.assertEqual((made.action, made.newKey), ("create", True))
        with self.assertRaises(etcd.EtcdAlreadyExist):
            self.client.write(key, "x", prevExist=False)
        updated = self.client.write(key, "b", prevExist=True)
        self.assertEqual((updated.action, updated.createdIndex), ("update", made.createdIndex))
        self.assertEqual(self.client.test_and_set(key, "c", "b").action, "compareAndSwap")
        with self.assertRaises(etcd.EtcdCompareFailed) as failed:
            self.client.test_and_set(key, "x", "b")
        self.assertEqual(failed.exception.payload["cause"], "[b != c]")
        with self.assertRaises(etcd.EtcdCompareFailed):
            self.client.write(key, "x", prevIndex=made.modifiedIndex)
        last = self.client.write(key, "d", prevIndex=updated.modifiedIndex + 1)
        self.assertEqual((last.action, last.createdIndex), ("compareAndSwap", made.createdIndex))
        mine = self.client.read(key)
        mine.value += "e"
        self.client.update(mine)
        with self.assertRaises(etcd.EtcdCompareFailed):
            self.client.update(mine)  # somebody, we ourselves, came in between
        with self.assertRaises(etcd.EtcdCompareFailed):
            self.client.delete(key, prevValue="d")
        with self.assertRaises(etcd.EtcdCompareFailed):
            self.client.delete(key, prevIndex=last.modifiedIndex)
        self.assertEqual(self.client.read(key).value, "de")
        self.assertEqual(self.client.delete(key, prevIndex=last.modifiedIndex + 1).action, "compareAndDelete")
        self.client.write(key, "f")
        self.assertEqual(self.client.pop(key, prevValue="f").value, "f")
        with self.assertRaises(etcd.EtcdKeyNotFound):
            self.client.pop(key)

    def test_directories(self) -> None:
        """Directories are made, listed as deep and as sorted as asked, and are no files."""
        for name in ("c", "a", "b/x", "b/y/z", "_hidden/w"):
            self.client.write(f"{self.root}/{name}", name)
        self.client.write(self.root + "/empty", None, dir=True)
        shallow = self.client.read(self.root, sorted=True)
        self.assertTrue(shallow.dir)
        self.assertEqual(self.names(shallow.leaves), ["a", "b", "c", "empty"])
        deep = self.client.read(self.root, recursive=True, sorted=True)
        self.assertEqual(self.names(deep.children), ["a", "b/x", "b/y/z", "c", "empty"])
        self.assertEqual(self.names(deep.get_subtree()), ["", "a", "b", "b/x", "b/y", "b/y/z", "c", "empty"])
        self.assertEqual([leaf.value for leaf in deep.leaves], ["a", "b/x", "b/y/z", "c", None])
        self.assertEqual(self.names(self.client.read(self.root, recursive=True, quorum=True).leaves, in_order=False),
                         ["a", "b/x", "b/y/z", "c", "empty"])  # fmt: skip
        self.assertEqual(self.client.read(self.root + "/_hidden").key, self.root + "/_hidden")
        for refused, error in (
            (lambda: self.client.write(self.root, "x"), etcd.EtcdNotFile),
            (lambda: self.client.write(self.root, None, dir=True), etcd.EtcdNotFile),
            (lambda: self.client.write(self.root + "/a/below", "x"), etcd.EtcdNotDir),
            (lambda: self.client.delete(self.root + "/b"), etcd.EtcdNotFile),
            (lambda: self.client.delete(self.root + "/b", dir=True), etcd.EtcdDirNotEmpty),
            (lambda: self.client.delete(self.root + "/none", recursive=True), etcd.EtcdKeyNotFound),
            (lambda: self.client.delete("/", recursive=True), etcd.EtcdRootReadOnly),
            (lambda: self.client.write("/", "x"), etcd.EtcdRootReadOnly),
        ):
            self.assertRaises(error, refused)
        self.assertTrue(self.client.delete(self.root + "/empty", dir=True)._prev_node.dir)
        self.assertTrue(self.client.pop(self.root + "/b", recursive=True).dir)
        self.assertEqual(self.names(self.client.read(self.root, recursive=True, sorted=True).leaves), ["a", "c"])

    def test_in_order_keys(self) -> None:
        """Appended values come back in their order, also those that several clients append at the same time."""
        queue = self.root + "/queue"
        first = self.client.write(queue, "first", append=True)
        self.assertEqual((first.action, first.newKey), ("create", True))
        self.assertEqual(first.key, f"{queue}/{first.createdIndex:020}")

        def append(name: int) -> list[str]:
            client = self.new_client()
            return [client.write(queue, f"{name}.{n}", append=True, ttl=60).key for n in range(20)]

        keys = [each.result() for each in [Aside(lambda name=name: append(name)) for name in range(3)]]
        for mine in keys:
            self.assertEqual(mine, sorted(mine))
        found = list(self.client.read(queue, sorted=True).leaves)
        self.assertEqual([leaf.key for leaf in found], sorted([first.key, *itertools.chain(*keys)]))
        self.assertEqual(len({leaf.key for leaf in found}), 61)

    def test_ttl(self) -> None:
        """A key lives as long as its TTL, which a refresh prolongs without anybody noticing, and a write takes away."""
        key, directory = self.root + "/key", self.root + "/dir"
        written = self.client.write(key, "x", ttl=100)
        self.assertEqual(written.ttl, 100)
        self.assertLess(abs(_seconds_until(written.expiration) - 100), 3)
        began = time.monotonic()
        short = self.client.write(directory, None, dir=True, ttl=1)
        self.client.write(directory + "/child/deep", "gone with it")
        refreshed = self.client.refresh(key, 300)
        self.assertEqual((refreshed.action, refreshed.value, refreshed.ttl), ("update", "x", 300))
        self.assertEqual(refreshed.createdIndex, written.createdIndex)
        with self.assertRaises(etcd.EtcdKeyNotFound):
            self.client.refresh(self.root + "/none", 10)
        with self.assertRaises(etcd.EtcdCompareFailed):
            self.client.refresh(key, 10, prevValue="y")
        with self.assertRaises(etcd.EtcdException) as refused:
            self.client.write(key, "z", refresh=True, ttl=10, prevExist=True)
        self.assertIn("Value provided on refresh", str(refused.exception))
        # The refresh was recorded, but is no event: the next one is the end of the directory.
        event = self.client.watch(self.root, index=refreshed.modifiedIndex, recursive=True)
        took = time.monotonic() - began
        self.assertEqual((event.action, event.key, event.dir), ("expire", directory, True))
        self.assertEqual(event._prev_node.modifiedIndex, short.modifiedIndex)
        self.assertGreaterEqual(took, 0.99)
        self.assertLess(took, 3.0)
        self.assertNotIn(directory, self.client)
        self.assertEqual(self.client.read(key).value, "x")
        kept = self.client.read(key)
        self.assertLess(abs(kept.ttl - 300), 5)
        self.assertEqual(self.client.update(kept).ttl, kept.ttl)
        self.assertIsNone(self.client.write(key, "for ever").ttl)
        self.assertEqual(self.client.write(key, "until then", ttl=0).action, "set")
        self.assertEqual(self.client.watch(key, index=self.index() + 1).action, "expire")

    def test_watch(self) -> None:
        """A watch waits for the next change of its key, or gives what has been since an index."""
        key = self.root + "/key"
        waiting = Aside(lambda: self.new_client().watch(key))
        below = Aside(lambda: self.new_client().watch(self.root, recursive=True))
        wait_for_watchers(self.server, 2)
        first = self.client.write(key, "1")
        self.assertEqual((waiting.result().value, below.result().key), ("1", key))
        self.client.write(self.root + "/other", "2")
        self.client.write(self.root + "/_hidden", "3")
        self.client.delete(key)
        self.assertEqual(self.client.watch(key, index=first.modifiedIndex).value, "1")
        past = self.client.watch(self.root, index=first.modifiedIndex + 1, recursive=True)
        self.assertEqual((past.key, past.value), (self.root + "/other", "2"))
        deleted = self.client.watch(key, index=first.modifiedIndex + 1)
        self.assertEqual((deleted.action, deleted.value, deleted._prev_node.value), ("delete", None, "1"))
        with self.assertRaises(etcd.EtcdWatchTimedOut):
            self.client.watch(key, timeout=0.2)
        wait_for_watchers(self.server, 0)  # who times out goes away, and the server notices
        with self.assertRaises(etcd.EtcdWatchTimedOut):
            self.client.read(self.root, wait=True, timeout=0.2)  # not recursive: what is below does not count

    def test_eternal_watch(self) -> None:
        """An eternal watch yields every change in its order, of the past and of the present."""
        first = self.client.write(self.root + "/0", "0")
        events = self.new_client().eternal_watch(self.root, index=first.modifiedIndex, recursive=True)
        following = Aside(lambda: [(event.action, event.value) for event in itertools.islice(events, 103)])
        for number in range(1, 101):
            self.client.write(f"{self.root}/{number % 7}", str(number))
        self.client.delete(self.root, recursive=True)
        self.client.write(self.root, None, dir=True)
        expected = [("set", str(number)) for number in range(101)]
        self.assertEqual(following.result(), [*expected, ("delete", None), ("set", None)])

    def test_cluster(self) -> None:
        """Machines, members, the leader, statistics and versions are those of this server."""
        client = self.client
        self.assertEqual(client.machines, [self.server.endpoint])
        ((member_id, member),) = client.members.items()
        self.assertEqual(member, {"id": member_id, "name": "m1", "peerURLs": [self.server.peer_url],
                                  "clientURLs": [self.server.endpoint]})  # fmt: skip
        self.assertEqual(client.leader, member)
        stats = client.stats
        self.assertEqual((stats["name"], stats["id"], stats["state"]), ("m1", member_id, "StateLeader"))
        self.assertEqual(stats["leaderInfo"]["leader"], member_id)
        self.assertEqual(client.leader_stats, {"leader": member_id, "followers": {}})
        self.assertTrue(client.version.startswith("3.5."))
        self.assertEqual(client.cluster_version, "3.5.0")
        before = client.store_stats
        client.write(self.root + "/a", "1")
        self.assertRaises(etcd.EtcdCompareFailed, lambda: client.test_and_set(self.root + "/a", "2", "3"))
        self.assertRaises(etcd.EtcdKeyNotFound, lambda: client.get(self.root + "/b"))
        client.delete(self.root + "/a")
        after = client.store_stats
        grown = {name: after[name] - count for name, count in before.items() if after[name] != count}
        # Each request for a key also reads whether there is auth: a key that may be there or not.
        self.assertEqual(grown.pop("getsFail", 0) + grown.pop("getsSuccess", 0), 1 + 4)
        self.assertEqual(grown, {"setsSuccess": 1, "compareAndSwapFail": 1, "deleteSuccess": 1})

    def test_which_cluster(self) -> None:
        """A client finds the server that lives, and notices that a cluster is not the one that it knew."""
        (dead,) = free_ports(1)
        finding = self.new_client(host=(("127.0.0.1", dead), ("127.0.0.1", self.server.port)), allow_reconnect=True)
        self.assertEqual(finding.write(self.root + "/a", "found").value, "found")
        self.assertEqual(finding.base_uri, self.server.endpoint)
        cluster_id = finding.expected_cluster_id
        self.assertRegex(cluster_id, "^[0-9a-f]{1,16}$")
        with self.assertRaises(etcd.EtcdClusterIdChanged):
            self.new_client(expected_cluster_id="1234").get(self.root + "/a")
        self.assertEqual(self.new_client(expected_cluster_id=cluster_id).get(self.root + "/a").value, "found")
        with self.assertRaises(etcd.EtcdKeyNotFound):
            self.new_client(expected_cluster_id=cluster_id).get(self.root + "/b")  # errors say it as well

    def test_users_and_roles(self) -> None:
        """Users and roles are made, and once they count nobody else reads or writes."""
        users = {name: etcd.auth.EtcdUser(self.client, name) for name in ("root", "anna")}
        users["root"].password, users["anna"].password = "secret", "pass"
        users["anna"].roles = ["reader"]
        role = etcd.auth.EtcdRole(self.client, "reader")
        role.grant(self.root + "/*", "R")
        for each in (role, *users.values()):
            each.write()
        self.assertEqual(users["anna"].roles, {"reader"})
        role.grant(self.root + "/more", "RW")
        role.revoke(self.root + "/*", "W")
        role.write()
        role.read()
        self.assertEqual(role.acls, {self.root + "/*": "R", self.root + "/more": "RW"})
        self.assertEqual([each["role"] for each in role.names], ["reader", "root"])
        self.assertEqual([each["user"] for each in users["root"].names], ["anna", "root"])
        self.client.write(self.root + "/key", "x")
        self.assertFalse(etcd.auth.Auth(self.client).active)
        etcd.auth.Auth(self.client).active = True
        by_root = self.new_client(username="root", password="secret")
        try:
            guest = etcd.auth.EtcdRole(by_root, "guest")
            guest.read()
            guest.revoke("/*", "RW")
            guest.write()
            anna = self.new_client(username="anna", password="pass")
            self.assertEqual(anna.read(self.root + "/key").value, "x")
            self.assertEqual(anna.write(self.root + "/more", "y").value, "y")
            for refused in (
                lambda: anna.write(self.root + "/key", "y"),
                lambda: anna.read("/elsewhere"),
                lambda: self.client.read(self.root + "/key"),
                lambda: self.new_client(username="anna", password="wrong").read(self.root + "/key"),
                lambda: etcd.auth.EtcdRole(anna, "reader").read(),
            ):
                self.assertRaises(etcd.EtcdInsufficientPermissions, refused)
        finally:
            etcd.auth.Auth(by_root).active = False
        for each in (*users.values(), role, guest):
            each.delete()
        self.assertRaises(etcd.EtcdKeyNotFound, role.read)
        self.assertEqual(self.client.read(self.root + "/more").value, "y")

    def names(self, nodes: Any, in_order: bool = True) -> list[str]:
        """The keys of nodes without what they have in common."""
        names = [node.key[len(self.root) :].lstrip("/") for node in nodes]
        return names if in_order else sorted(names)

    def index(self) -> int:
        """The index of the store."""
        index: int = self.client.read(self.root).etcd_index
        return index


def _seconds_until(expiration: str) -> float:
    """From now to a time as etcd writes it: in UTC, with up to nine digits behind the second."""
    date, _, fraction = expiration.removesuffix("Z").partition(".")
    moment = datetime.fromisoformat(date).replace(tzinfo=UTC)
    return moment.timestamp() + float(f"0.{fraction or 0}") - time.time()  # noqa: TID251
