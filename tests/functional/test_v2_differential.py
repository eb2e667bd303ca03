"""twistedkv's v2 API against real etcd, answer by answer; and the comparison itself against answers that are wrong.

``TWISTEDKV_V2_DIFFERENTIAL_SEEDS`` ("1,2,3") and ``TWISTEDKV_V2_DIFFERENTIAL_STEPS`` (of each seed) ask for more.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.processes import MISSING_ETCD, EtcdProcess, ServerProcess, TLSFiles, TwistedkvProcess
from tests.functional.v2badinput import AT_ONCE
from tests.functional.v2client import Connection, NothingCame, Reply, Request, Unreadable, V2Client, form
from tests.functional.v2comparison import equal, same_body
from tests.functional.v2differential import TABLES, V2_OPTIONS, Run, started
from tests.functional.v2pair import Pair, Parted, Poll, Side, poll_of

_SEEDS = [int(seed) for seed in os.environ.get("TWISTEDKV_V2_DIFFERENTIAL_SEEDS", "1,2").split(",")]
_STEPS = int(os.environ.get("TWISTEDKV_V2_DIFFERENTIAL_STEPS", "300"))
_EVENT_TIMEOUT_S = 15.0
_SILENCE_S = 0.3  # nothing is to come, and there is no event to tell that by
_HISTORY = 1000
_MOST_SHOWN = 12


class Falsifier:
    """A side that changes the first answer that ``falsify`` can change, and remembers all that it gave.

    Args:
        falsify: of a request and its answer; ``None`` changes nothing.
    """

    def __init__(self, side: Side, falsify: Callable[[Reply], Reply] | None = None) -> None:
        self._side = side
        self._falsify = falsify
        self.answers: list[tuple[Request, Reply]] = []
        self.lied: list[Request] = []

    def ask(self, request: Request) -> Reply:
        """The true answer, or once a changed one."""
        reply = self._side.ask(request)
        self.answers.append((request, reply))
        if self._falsify is None or self.lied:
            return reply
        changed = self._falsify(reply)
        if changed != reply:
            self.lied.append(request)
        return changed

    def watch(self, target: bytes) -> Poll:
        """A true long poll."""
        return self._side.watch(target)

    def close(self) -> None:
        """Close the connections."""
        self._side.close()


class FalsePoll:
    """A long poll whose lines are changed by ``falsify`` as they come; its answer must end by itself."""

    def __init__(self, poll: Poll, falsify: Callable[[list[bytes]], list[bytes]]) -> None:
        self.head = poll.head
        self._poll = poll
        self._falsify = falsify
        self._lines: list[bytes] | None = None

    def next(self, timeout_s: float) -> bytes:
        """The next line, or empty at the end."""
        if self._lines is None:
            true: list[bytes] = []
            while line := self._poll.next(timeout_s):
                true.append(line)
            self._lines = self._falsify(true)
        return self._lines.pop(0) if self._lines else b""

    def close(self) -> None:
        """Go away."""
        self._poll.close()


@dataclass(frozen=True, slots=True)
class Shared:
    """Two servers that the tests of this process share, as long as they are in the same state."""

    servers: list[ServerProcess]
    pair: Pair


@cache
def _scratch() -> Path:
    """A directory that goes away when the process ends, after the servers in it."""
    directory = tempfile.TemporaryDirectory(prefix="twistedkv-v2-")
    atexit.register(directory.cleanup)
    return Path(directory.name)


@cache
def _certificates() -> TLSFiles:
    return TLSFiles.make(_scratch() / "tls")


_NUMBERS = count(1)
_SHARED: dict[tuple[type[ServerProcess], ...], Shared] = {}


def shared_pair(*kinds: type[ServerProcess]) -> Pair:
    """Two running servers without keys; new ones where a test has parted those that there were.

    Raises:
        ServerFailed: one does not start.
    """
    if shared := _SHARED.pop(kinds, None):
        try:
            shared.pair.wipe()
        except Parted:
            shared.pair.close()
            for server in shared.servers:
                server.stop()
        else:
            return _SHARED.setdefault(kinds, shared).pair
    place = _scratch() / f"{next(_NUMBERS)}"
    servers = [kind(place / f"{n}", _certificates(), V2_OPTIONS[kind]) for n, kind in enumerate(kinds)]
    for server in servers:
        atexit.register(server.stop)
    return _SHARED.setdefault(kinds, Shared(servers, Pair(*started(servers)))).pair


class V2DifferentialTests(SynchronousTestCase):
    """etcd and twistedkv side by side."""

    skip = MISSING_ETCD

    def setUp(self) -> None:
        """Two servers in the same state."""
        self.pair = shared_pair(EtcdProcess, TwistedkvProcess)

    def _put(self, path: bytes, body: bytes = b"value=x", method: str = "PUT") -> int:
        """Set a key on both; the index of the event."""
        reply = self.pair.ask(form(method, b"/v2/keys/" + path, body))
        return int(reply.one("x-etcd-index") or 0)

    def _delete(self, path: bytes, query: bytes = b"") -> None:
        self.pair.ask(Request("DELETE", b"/v2/keys/" + path + query))

    def test_random_steps_show_what_etcd_shows(self) -> None:
        """Every answer and every event of random requests and long polls is the one that real etcd gives."""
        before = self.pair.events
        for seed in _SEEDS:
            if difference := Run(self.pair, seed).run(_STEPS):
                self.fail(str(difference))
        self.assertGreater(self.pair.events - before, 5)

    def _table(self, name: str) -> None:
        if wrong := self.pair.table(TABLES[name]):
            self.fail(f"{len(wrong)} differences\n" + "\n".join(wrong[:_MOST_SHOWN]))

    def test_directories(self) -> None:
        """The root, directories and files in each other's place are refused as by etcd."""
        self._table("directories")

    def test_parameters(self) -> None:
        """Parameters that are no booleans and no numbers, or do not go together, get etcd's error."""
        self._table("parameters")

    def test_forms(self) -> None:
        """Malformed forms and other bodies are understood, or not, as by etcd."""
        self._table("forms")

    def test_paths(self) -> None:
        """Escapes, dots, slashes and unknown methods lead to the same keys, redirections and refusals."""
        self._table("paths")

    def test_sizes(self) -> None:
        """Values and bodies up to ten megabytes are taken, and larger ones are refused."""
        self._table("sizes")

    def test_pages(self) -> None:
        """Members, machines, statistics and auth show the same, ids and counters aside."""
        self._table("pages")

    def test_watches_from_history(self) -> None:
        """A waitIndex of the past gives the first event from there on that concerns the key, in etcd's sense of it."""
        first = self._put(b"a/b")
        self._put(b"a/_h/x")
        self._put(b"a/ttl", b"value=1&ttl=5000")
        self._put(b"a/ttl", b"refresh=true&prevExist=true&ttl=6000")
        self._delete(b"a", b"?recursive=true")
        last = self._put(b"c")
        for path in (b"", b"a", b"a/b", b"a/_h/x", b"a/ttl", b"a/none"):
            for since in range(first, last + 2):
                for recursive in (True, False) if path else (True,):
                    poll = poll_of(path.split(b"/") if path else [], recursive=recursive, stream=False, since=since)
                    self.pair.finish(self.pair.open(poll))

    def test_a_stream_from_the_past_goes_on(self) -> None:
        """An intended difference: a stream gets all events from its waitIndex on; etcd sends only the first of them."""
        values = (b"one", b"two", b"three")
        indexes = [self._put(b"a", b"value=" + value) for value in values[:2]]
        poll = self.pair.open(poll_of([b"a"], recursive=False, stream=True, since=indexes[0]))
        indexes.append(self._put(b"a", b"value=" + values[2]))
        for index, value in zip(indexes, values, strict=True):
            line = json.loads(poll.found.next(_EVENT_TIMEOUT_S))
            self.assertEqual((line["node"]["modifiedIndex"], line["node"]["value"].encode()), (index, value))
        self.assertIn(b'"value":"one"', poll.expected.next(_EVENT_TIMEOUT_S))
        for each in (poll.expected, poll.found):
            self.assertRaises(NothingCame, each.next, _SILENCE_S)
            each.close()

    def test_the_end_of_a_watched_path_is_streamed_twice(self) -> None:
        """A stream on exactly the path that is deleted gets the event twice, as from etcd, and all others once."""
        polls = [
            self.pair.open(poll_of(path, recursive=recursive, stream=True))
            for path in ([b"a"], [b"a", b"f"], [b"a", b"d"], [b"a", b"d", b"x"], [b"a", b"_h", b"x"])
            for recursive in (True, False)
        ]
        for _ in range(2):
            for path in (b"a/f", b"a/d/x", b"a/_h/x"):
                self._put(path)
            self._delete(b"a/f")
            self._put(b"a/f", b"value=y")
            self._delete(b"a/f", b"?prevValue=y")
            self._put(b"a/f")
            self._put(b"a/f", b"dir=true")
            self._delete(b"a/f", b"?dir=true")
            self._delete(b"a", b"?recursive=true")
        for poll in polls:
            self.pair.finish(poll)

    def test_a_watch_past_the_window_is_refused(self) -> None:
        """Of the last 1,000 events each can be watched from, and the one before is error 401."""
        last = self._put(b"w")
        for number in range(last, _HISTORY + 10):
            last = self._put(b"w" if number % 50 else b"v", b"value=%d" % number)
        answers = []
        for since in (1, *range(last - _HISTORY - 1, last - _HISTORY + 3)):
            poll = self.pair.open(poll_of([b"v"], recursive=False, stream=False, since=since))
            answers.append(poll.expected.head.status)
            self.pair.finish(poll)
        self.assertEqual(answers, [400, 400, 400, 200, 200])

    def test_a_quorum_read_does_not_wait(self) -> None:
        """With quorum=true a wait is a read."""
        self._put(b"a")
        for query in (b"wait=true&quorum=true", b"wait=true&quorum=true&stream=true&waitIndex=1"):
            reply = self.pair.ask(Request("GET", b"/v2/keys/a?" + query))
            self.assertEqual(json.loads(reply.body)["action"], "get")

    def test_a_connection_outlives_its_watch(self) -> None:
        """After a long poll that has ended, the same connection takes the next request."""
        replies = []
        for side in self.pair.sides:
            assert isinstance(side, V2Client)
            connection = Connection(side.server)
            connection.send(Request("GET", b"/v2/keys/a?wait=true").encoded())
            head = connection.read_head()
            side.ask(form("PUT", b"/v2/keys/a", b"value=x"))
            event = b"".join(connection.read_body(head))
            replies.append((event, connection.ask(Request("GET", b"/v2/keys/a"))))
            connection.close()
        (expected, after), (found, then) = replies
        self.assertTrue(same_body(Request("GET", b"/v2/keys/a"), expected, found), f"{expected} {found}")
        self.assertTrue(equal(Request("GET", b"/v2/keys/a"), after, then), f"{after} {then}")

    def test_a_client_that_goes_away_frees_its_watcher(self) -> None:
        """The number of watchers goes up with each long poll, and down again when its client is gone."""
        before = self._watchers()
        polls = [self.pair.open(poll_of([b"a"], recursive=True, stream=stream)) for stream in (True, False, True)]
        self.assertEqual(self._watchers(), [count + len(polls) for count in before])
        for poll in polls:
            poll.expected.close()
            poll.found.close()
        deadline = time.monotonic() + _EVENT_TIMEOUT_S
        while self._watchers() != before:
            self.assertLess(time.monotonic(), deadline, f"{self._watchers()} are left, {before} were there")

    def _watchers(self) -> list[int]:
        pages = [side.ask(Request("GET", b"/v2/stats/store")) for side in self.pair.sides]
        return [json.loads(page.body)["watchers"] for page in pages]

    def test_ends_come_in_etcds_order(self) -> None:
        """Keys and directories end one after the other, seen from above, from below and at the very path."""
        for request in AT_ONCE:
            self.pair.end_at_once(request)
        Run(self.pair, 1).expire()

    def test_what_is_different_for_directories(self) -> None:
        """An intended difference: an update of a directory's TTL works, as in etcd 3.4, where 3.5.1 answers 500.

        It parts the two, and is the last of its class by name: tests after it need new servers.
        """
        update = form("PUT", b"/v2/keys/d", b"dir=true&prevExist=true&ttl=5000")
        self._put(b"d/k")
        etcd, ours = (side.ask(update) for side in self.pair.sides)
        self.assertEqual((etcd.status, json.loads(etcd.body)["errorCode"]), (500, 300))
        self.assertEqual(ours.status, 200, ours.body)
        event = json.loads(ours.body)
        self.assertEqual((event["action"], event["node"]["ttl"], event["node"]["dir"]), ("update", 5000, True))
        self.assertEqual(event["node"]["createdIndex"] + 1, event["node"]["modifiedIndex"])
        self.assertNotIn("ttl", event["prevNode"])
        kept = json.loads(self.pair.sides[1].ask(Request("GET", b"/v2/keys/d/k")).body)
        self.assertEqual(kept["node"]["value"], "x")


class SelfCheckTests(SynchronousTestCase):
    """The harness examined: real etcd against itself, and against falsified answers."""

    skip = MISSING_ETCD

    def setUp(self) -> None:
        """Two real etcd servers."""
        self.pair = shared_pair(EtcdProcess, EtcdProcess)

    def test_etcd_equals_itself(self) -> None:
        """Two real etcd servers show no difference; each of many wrong answers in the place of a right one does."""
        reference, subject = self.pair.sides
        recorder = Falsifier(reference)
        self.assertIsNone(Run(Pair(recorder, subject), 4).run(300))
        for name, falsify in _FALSIFICATIONS.items():
            changed = [(request, reply, falsify(reply)) for request, reply in recorder.answers]
            changed = [each for each in changed if each[1] != each[2]]
            self.assertTrue(changed, f"the sequence never gave an occasion for {name}")
            missed = [f"{request}" for request, reply, false in changed if equal(request, reply, false)]
            self.assertEqual(missed, [], name)

    def test_a_falsified_answer_is_named(self) -> None:
        """The first wrong answer ends the run, and is reported with its request."""
        reference, subject = self.pair.sides
        liar = Falsifier(subject, _body(rb'"value":"x"', b'"value":"z"'))
        found = Run(Pair(reference, liar), 5).run(300)
        assert found is not None
        self.assertEqual(found.request, str(liar.lied[0]))
        self.assertIn("--seed 5 --steps", str(found))

    def test_a_falsified_event_is_found(self) -> None:
        """A line of a long poll that is missing, comes twice, in another order, or says something else is reported."""
        for name, falsify in _FALSE_LINES.items():
            poll = self.pair.open(poll_of([b"a"], recursive=False, stream=False))
            false = replace(poll, found=FalsePoll(poll.found, falsify))
            self.assertRaises(Parted, self.pair.finish, false)
            self.assertTrue(name)


class ComparisonTests(SynchronousTestCase):
    """What counts as equal."""

    def _equal(self, expected: bytes, found: bytes, target: bytes = b"/v2/keys/a") -> bool:
        return same_body(Request("GET", target), expected, found)

    def test_times_may_be_a_little_apart(self) -> None:
        """The end of a key may differ by seconds and its rest by one; another style of the moment is a difference."""
        body = b'{"node":{"expiration":"2026-11-23T01:33:%s","ttl":%d}}'
        self.assertTrue(self._equal(body % (b"08.27331Z", 5), body % (b"09.1Z", 6)))
        self.assertTrue(self._equal(body % (b"08Z", 5), body % (b"08.000000001Z", 5)))
        self.assertFalse(self._equal(body % (b"08.2Z", 5), body % (b"08.2Z", 7)))
        self.assertFalse(self._equal(body % (b"08.2Z", 5), body % (b"38.2Z", 5)))
        for style in (b"08.20Z", b"08.2+00:00", b"08.2", b"08.1234567891Z", b"08.Z"):
            self.assertFalse(self._equal(body % (b"08.2Z", 5), body % (style, 5)), style)

    def test_text_that_looks_like_a_time_is_compared(self) -> None:
        """What stands in a value is not masked."""
        body = rb'{"node":{"value":"{\"ttl\":%d}"}}'
        self.assertFalse(self._equal(body % 5, body % 6))

    def test_the_order_of_a_listing_is_open_unless_asked_for(self) -> None:
        """Nodes may change places in what is not sorted, and there only; what they say may not change."""
        one, two = b'{"key":"/a/b","ttl":5}', b'{"key":"/a/c","dir":true,"nodes":[{"key":"/a/c/x"},{"key":"/a/c/y"}]}'
        other = b'{"key":"/a/c","dir":true,"nodes":[{"key":"/a/c/y"},{"key":"/a/c/x"}]}'
        bodies = [b'{"node":{"nodes":[%s]}}' % b",".join(nodes) for nodes in ((one, two), (other, one))]
        for query in (b"", b"?sorted=false", b"?sorted=0&sorted=true", b"?recursive=true"):
            self.assertTrue(self._equal(*bodies, target=b"/v2/keys/a" + query), query)
        for query in (b"?sorted=true", b"?recursive=1&sorted=t", b"?x;sorted=1&sorted=0"):
            self.assertFalse(self._equal(*bodies, target=b"/v2/keys/a" + query), query)
        self.assertFalse(self._equal(bodies[0], bodies[1].replace(b"/a/c/y", b"/a/c/z")))
        self.assertFalse(self._equal(bodies[0], bodies[1].replace(b'"dir":true', b'"dir": true')))

    def test_a_body_after_head_is_seen(self) -> None:
        """A server that sends a body with the answer to HEAD makes the next answer unreadable."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            server = EtcdProcess(_scratch() / "never-started")
            server.port = listening.getsockname()[1]
            connection = Connection(server, timeout_s=5)
            accepted, _ = listening.accept()
            accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            self.assertEqual(connection.ask(Request("HEAD", b"/")).status, 200)
            accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            self.assertRaises(Unreadable, connection.ask, Request("GET", b"/"))
            connection.close()
            accepted.close()


def _body(pattern: bytes, replacement: bytes) -> Callable[[Reply], Reply]:
    return lambda reply: replace(reply, body=re.sub(pattern, replacement, reply.body, count=1))


def _header(name: str, value: str | None = None, spelled: str | None = None) -> Callable[[Reply], Reply]:
    """Another value or spelling of a header, or none."""

    def falsify(reply: Reply) -> Reply:
        kept = [each for each in reply.headers if each[0] != name]
        if len(kept) == len(reply.headers) or (value is None and spelled is None):
            return replace(reply, headers=tuple(kept))
        return replace(reply, headers=(*kept, (spelled or name, value or reply.one(name) or "")))

    return falsify


def _next_index(reply: Reply) -> Reply:
    return _header("X-Etcd-Index", str(int(reply.one("x-etcd-index") or 0) + 1))(reply)


def _swapped(reply: Reply) -> Reply:
    """The members of an object in another order."""
    return replace(reply, body=re.sub(rb'("modifiedIndex":\d+),("createdIndex":\d+)', rb"\2,\1", reply.body, count=1))


_FALSIFICATIONS: dict[str, Callable[[Reply], Reply]] = {
    "another value": _body(rb'"value":"x"', b'"value":"z"'),
    "another action": _body(rb'"action":"set"', b'"action":"update"'),
    "an index one too high": _body(rb'"createdIndex":', b'"createdIndex":1'),
    "no previous node": _body(rb',"prevNode":\{[^{}]*\}', b""),
    "an empty value left out": _body(rb',"value":""', b""),
    "a directory that is none": _body(rb',"dir":true', b""),
    "other escapes": _body(rb"\\u003c", b"<"),
    "a separator left unescaped": _body(rb"\\u2028", "\u2028".encode()),
    "a space in JSON": _body(rb'":\{', b'": {'),
    "no newline at the end": _body(rb"\n$", b""),
    "members in another order": _swapped,
    "a time to live two seconds longer": _body(rb'"ttl":5000', b'"ttl":5002'),
    "no time to live": _body(rb',"ttl":\d+', b""),
    "another year": _body(rb'"expiration":"2\d\d\d', b'"expiration":"1999'),
    "a moment that is none": _body(rb'("expiration":"[^T]*T)\d\d', rb"\g<1>24"),
    "a moment in another style": _body(rb'("expiration":"[^Z"]*)Z', rb"\1+00:00"),
    "another error code": _body(rb'"errorCode":1', b'"errorCode":2'),
    "another cause": _body(rb'"cause":"/', b'"cause":"/1/'),
    "another status": lambda reply: replace(reply, status=200) if reply.status == 201 else reply,
    "an unexpected interim answer": lambda reply: replace(reply, interim=(100,)),
    "a store index one too high": _next_index,
    "no cluster id": _header("X-Etcd-Cluster-Id"),
    "another spelling of the cluster id": _header("X-Etcd-Cluster-Id", spelled="X-Etcd-Cluster-ID"),
    "no Raft index": _header("X-Raft-Index"),
    "no Raft term": _header("X-Raft-Term"),
    "a Raft term too much": lambda reply: replace(reply, headers=(*reply.headers, ("X-Raft-Term", "2"))),
    "another content type": _header("Content-Type", "application/json; charset=utf-8"),
    "no CORS header": _header("Access-Control-Allow-Origin"),
}

_FALSE_LINES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "an event is missing": lambda lines: [],
    "an event comes twice": lambda lines: lines * 2,
    "another event": lambda lines: [line.replace(b"marker", b"other") for line in lines],
    "another index": lambda lines: [line.replace(b'"createdIndex":', b'"createdIndex":1') for line in lines],
}
