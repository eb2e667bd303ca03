"""Recipes over the v2 API with python-etcd 0.4.5 over mutual TLS: its lock, elections, and the loop of confd.

python-etcd has no recipe for elections: ``Client.election`` raises, because etcd 2.0 took its own away. Both usual ones
are here, built of its calls: the key that is created with a TTL and kept by refreshing it (``prevExist=false``, then
``refresh`` with ``prevValue``), and the queue of in-order keys, of which the first one leads.
"""

from __future__ import annotations

import contextlib  # not its names: trial takes a module's "suppress" for a setting of its own
import json
import time
from collections.abc import Iterable
from threading import Event
from typing import Any

from tests.functional.etcdctlv2 import wait_for_watchers, wait_until, watchers
from tests.functional.pythonetcd import MISSING_CLIENT, TIMEOUT_S, Aside, PythonEtcdCase
from tests.functional.v2client import V2Client, form

if MISSING_CLIENT is None:
    import etcd

_HISTORY = 1000  # events that etcd's v2 store keeps


class RecipeTests(PythonEtcdCase):
    """What programs do with it together."""

    skip = MISSING_CLIENT

    def test_lock(self) -> None:
        """A lock has one holder; who waits gets it when the holder lets go, and every holder can prolong its time."""
        mine, yours = self.lock("one", self.client), self.lock("one", self.new_client())
        self.assertTrue(mine.acquire(lock_ttl=60))
        self.assertTrue(mine.is_acquired)
        self.assertFalse(yours.acquire(blocking=False, lock_ttl=60))
        self.assertFalse(yours.is_acquired)
        self.assertTrue(mine.acquire(lock_ttl=300))  # once more is to renew it
        self.assertLess(abs(self.client.read(mine.lock_key).ttl - 300), 5)
        restarted = self.lock("one", self.new_client())
        restarted.uuid = mine.uuid  # as a process that comes back and knows its id
        self.assertTrue(restarted.acquire(blocking=False, lock_ttl=None))
        with self.assertRaises(ValueError):
            self.lock("one", self.client).uuid = "nobody's"
        waiting = Aside(lambda: yours.acquire(lock_ttl=60))
        wait_for_watchers(self.server, 1)
        mine.release()
        self.assertTrue(waiting.result())
        self.assertTrue(yours.is_acquired)
        self.assertFalse(mine.is_acquired)
        yours.release()
        with self.lock("one", self.client) as held:
            self.assertTrue(held.is_acquired)
            self.assertIsNone(self.client.read(held.lock_key).ttl)
        self.assertFalse(held.is_acquired)

    def test_lost_lock(self) -> None:
        """A lock is lost when its time is over: the next one has it; so is a place in the queue."""
        mine, yours, late = (self.lock("lost", self.new_client()) for _ in range(3))
        self.assertTrue(mine.acquire(lock_ttl=2))
        self.assertFalse(late.acquire(blocking=False, lock_ttl=1))
        waiting = Aside(lambda: yours.acquire(lock_ttl=60))
        began = time.monotonic()
        wait_for_watchers(self.server, 1)
        self.assertTrue(mine.is_acquired)
        self.assertTrue(waiting.result())
        self.assertLess(time.monotonic() - began, 5)
        self.assertFalse(mine.is_acquired)
        self.assertTrue(yours.is_acquired)
        self.assertFalse(late._find_lock())
        with self.assertRaises(etcd.EtcdLockExpired):
            late._get_locker()
        mine.release()  # of what it does not have any more: no error, and nobody else's loss
        self.assertTrue(yours.is_acquired)
        yours.release()

    def test_lock_excludes(self) -> None:
        """Four clients that count under a lock by reading and writing miss no count."""
        counter = self.root + "/counter"
        self.client.write(counter, "0")

        def count() -> None:
            client = self.new_client()
            for _ in range(5):
                lock = self.lock("count", client)
                lock.acquire(lock_ttl=60)
                before = int(client.read(counter).value)
                client.write(counter, str(before + 1))
                lock.release()

        for each in [Aside(count) for _ in range(4)]:
            each.result()
        self.assertEqual(self.client.read(counter).value, "20")

    def test_election_by_ttl(self) -> None:
        """Who creates the key leads as long as it refreshes it; when it stops, one of the others leads."""
        key = self.root + "/leader"

        def campaign(name: str) -> Any:
            client = self.new_client()
            while True:
                try:
                    return client.write(key, name, ttl=2, prevExist=False)
                except etcd.EtcdAlreadyExist as error:
                    try:
                        client.watch(key, index=error.payload["index"] + 1)
                    except etcd.EtcdEventIndexCleared:
                        continue  # more has happened in between than is kept: campaign again

        won = campaign("first")
        others = [Aside(lambda name=name: campaign(name)) for name in ("second", "third")]
        wait_for_watchers(self.server, 2)
        passing = Event()  # which nobody sets: time that passes
        passing.wait(1.0)
        self.client.refresh(key, 2, prevValue="first")
        passing.wait(1.2)
        self.assertEqual(self.client.read(key).createdIndex, won.createdIndex)  # without the refresh it were gone
        self.assertEqual(watchers(self.server), 2)  # and nobody was woken by that
        wait_until(lambda: not all(each.is_alive() for each in others), "the next leader")
        with self.assertRaises((etcd.EtcdCompareFailed, etcd.EtcdKeyNotFound)):
            self.client.refresh(key, 2, prevValue="first")  # who led before cannot go on
        with contextlib.suppress(etcd.EtcdKeyNotFound):  # if this comes so late that it lost its lead by itself
            self.client.delete(key)  # the second leader resigns
        self.assertEqual({each.result().value for each in others}, {"second", "third"})

    def test_election_by_order(self) -> None:
        """Candidates stand in line: the first in-order key leads, and each watches only the one before it."""
        queue = self.root + "/election"
        candidates = [(client := self.new_client(), client.write(queue, str(n), append=True)) for n in range(4)]

        def lead(client: Any, mine: Any) -> None:
            while True:
                line = list(client.read(queue, sorted=True).leaves)
                place = [each.key for each in line].index(mine.key)
                if place == 0:
                    return
                client.watch(line[place - 1].key, index=line[place - 1].modifiedIndex + 1)

        waiting = [Aside(lambda each=each: lead(*each)) for each in candidates]
        led = []
        for number, (client, mine) in enumerate(candidates):
            waiting[number].result()
            wait_for_watchers(self.server, 3 - number)  # the others wait, and each for another key
            led.append(mine.value)
            client.delete(mine.key)
        self.assertEqual(led, ["0", "1", "2", "3"])

    def test_configuration_daemon(self) -> None:
        """Whoever lists and then follows, as confd does, sees every change, or is told that it has to list again."""
        reader, prefix, total = self.new_client(), self.root, 1500
        self.client.write(prefix + "/0", "0")
        listed = reader.read(prefix, recursive=True)
        seen = {leaf.key: leaf.value for leaf in listed.leaves}
        followed: list[str] = []

        def follow(index: int, last: str) -> int:
            while True:
                event = reader.watch(prefix, index=index, recursive=True, timeout=TIMEOUT_S)
                followed.append(event.value)
                seen[event.key] = event.value
                index = event.modifiedIndex + 1
                if event.value == last:
                    return index

        following = Aside(lambda: follow(listed.etcd_index + 1, "400"))
        self.write_many(range(1, 401))
        index = following.result()
        self.assertEqual(followed, [str(number) for number in range(1, 401)])
        self.write_many(range(401, total))  # while the reader is busy with something else
        with self.assertRaises(etcd.EtcdEventIndexCleared) as cleared:
            reader.watch(prefix, index=index, recursive=True)
        self.assertEqual(cleared.exception.payload["errorCode"], 401)
        self.assertIn(f"/{index}]", cleared.exception.payload["cause"])
        listed = reader.read(prefix, recursive=True)
        seen |= {leaf.key: leaf.value for leaf in listed.leaves}
        following = Aside(lambda: follow(listed.etcd_index + 1, str(total)))
        self.write_many([total])
        following.result()
        self.assertEqual(seen, {f"{prefix}/{number}": str(number) for number in range(total + 1)})
        self.assertEqual(followed[400:], [str(total)])
        oldest = reader.watch(prefix, index=listed.etcd_index + 2 - _HISTORY, recursive=True)
        self.assertEqual(oldest.value, str(total - _HISTORY + 1))  # exactly so many are kept

    def lock(self, name: str, client: Any) -> Any:
        """A lock that goes away with the test."""
        client._lock_prefix = self.root + "/_locks"
        return etcd.Lock(client, name)

    def write_many(self, numbers: Iterable[int]) -> None:
        """Write a key for each number as another program would."""
        with contextlib.closing(V2Client(self.server)) as client:
            for number in numbers:
                body = b"value=%d" % number
                reply = client.ask(form("PUT", f"/v2/keys{self.root}/{number}".encode(), body))
                self.assertEqual(reply.status, 201, reply.body)
                self.assertEqual(json.loads(reply.body)["node"]["value"], str(number))
