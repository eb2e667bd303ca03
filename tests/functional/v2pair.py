"""Two servers that are asked the same, for the differential test of the v2 API: answers and long polls compared.

A long poll is compared when it is finished: then its path gets an event of its own, so that what came before is all
that is to come, and nothing has to be waited for in vain.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tests.functional.v2client import ConnectionEnded, NothingCame, Reply, Request, Unreadable, form
from tests.functional.v2comparison import equal, excerpts, report, same_body
from tests.functional.v2operations import TOP, Open, joined, path_of, target_of

_EVENT_TIMEOUT_S = 15.0
_MOST_MARKERS = 20  # events to reach a waitIndex that is still to come
_NOT_A_DIRECTORY = 104


class Poll(Protocol):
    """A long poll of one of the two servers."""

    head: Reply

    def next(self, timeout_s: float) -> bytes:
        """The next line, or empty at the end."""

    def close(self) -> None:
        """Go away."""


class Side(Protocol):
    """One of the two servers."""

    def ask(self, request: Request) -> Reply:
        """Send one request and wait for the answer."""

    def watch(self, target: bytes) -> Poll:
        """Open a long poll."""

    def close(self) -> None:
        """Close the connections."""


class Parted(Exception):
    """The servers have parted; :attr:`Difference.number` is not known here."""

    def __init__(self, request: str, expected: str, found: str) -> None:
        super().__init__(f"{request}\n  expected {expected}\n  found    {found}")
        self.request, self.expected, self.found = request, expected, found


@dataclass(frozen=True, slots=True)
class OpenPoll:
    """One long poll on both servers."""

    step: Open
    expected: Poll
    found: Poll


class Pair:
    """Two servers that are asked the same."""

    def __init__(self, reference: Side, subject: Side) -> None:
        self.sides = (reference, subject)
        self.events = 0  # compared so far

    def ask(self, request: Request) -> Reply:
        """The answer of the reference, which is the other's too.

        Raises:
            Parted: it is not.
        """
        expected, found = (self._asked(side, request) for side in self.sides)
        if not equal(request, expected, found):
            raise Parted(str(request), *report(request, expected, found))
        return expected

    def open(self, step: Open) -> OpenPoll:
        """Open a long poll on both; the heads of the answers are compared."""
        try:
            polls = [side.watch(step.target) for side in self.sides]
        except (ConnectionEnded, NothingCame, Unreadable) as error:
            raise Parted(str(step), "two heads", repr(error)) from error
        request, (expected, found) = Request("GET", step.target), (poll.head for poll in polls)
        if not equal(request, expected, found):
            raise Parted(str(step), *report(request, expected, found))
        return OpenPoll(step, polls[0], polls[1])

    def finish(self, poll: OpenPoll) -> None:
        """Make events at the poll's path until it has one that it must report, and compare all that it reported."""
        refused = poll.expected.head.status != 200
        self.compare(poll, 0 if refused else self._mark(poll.step))

    def compare(self, poll: OpenPoll, last_index: int) -> None:
        """Compare all lines up to the first event of this index or a later one, or the end of the answer."""
        request = Request("GET", poll.step.target)
        expected, found = (_lines(each, last_index, poll.step.stream) for each in (poll.expected, poll.found))
        for each in (poll.expected, poll.found):
            each.close()
        same = len(expected) == len(found) and all(
            same_body(request, a, b) for a, b in zip(expected, found, strict=True)
        )
        if not same:
            raise Parted(str(poll.step), *excerpts(b"".join(expected), b"".join(found)))
        self.events += sum(1 for line in expected if line.startswith(b'{"action"'))

    def table(self, requests: Sequence[Request]) -> list[str]:
        """Ask all of them, of an empty tree; what is said of those that are answered differently."""
        self.wipe()
        wrong = []
        for number, request in enumerate(requests):
            try:
                self.ask(request)
            except Parted as parted:
                wrong.append(f"{number}. {parted}")
                self._level()
        return wrong

    def end_at_once(self, request: Request) -> None:
        """Make a key that has ended when it is made, and compare its end."""
        path = [path_of(request.target).strip(b"/")]
        poll = self.open(poll_of(path, recursive=False, stream=True))
        made = self.ask(request)
        self.compare(poll, int(made.one("x-etcd-index") or 0) + 1)

    def compare_trees(self) -> None:
        """Compare everything that there is, hidden nodes too."""
        for target in (target_of([], b"recursive=true&sorted=true"), *(target_of([name]) for name in TOP)):
            self.ask(Request("GET", target))
            self.ask(Request("GET", target.partition(b"?")[0] + b"?recursive=true&quorum=true"))

    def close(self) -> None:
        """Close the connections."""
        for side in self.sides:
            side.close()

    def wipe(self) -> None:
        """Delete everything."""
        top = json.loads(self.ask(Request("GET", target_of([], b"sorted=true"))).body)["node"].get("nodes", [])
        for name in {*TOP, *(node["key"].strip("/").encode() for node in top)}:
            self.ask(Request("DELETE", target_of([name], b"recursive=true")))

    def _level(self) -> None:
        """Let the one that is behind have the other's index, so that one difference is not followed by many."""
        look = Request("GET", target_of([b"_level"]))
        indexes = [int(self._asked(side, look).one("x-etcd-index") or 0) for side in self.sides]
        for side, index in zip(self.sides, indexes, strict=True):
            for _ in range(index, max(indexes)):
                side.ask(form("PUT", look.target, b"value="))

    def _mark(self, step: Open) -> int:
        """The index of an event that the poll reports, unless its answer has ended."""
        path = [element for element in step.path.split(b"/") if element]
        for _ in range(_MOST_MARKERS):
            node = self.ask(Request("GET", target_of(path)))
            is_directory = node.status == 200 and b'"dir":true' in node.body.partition(b'"nodes":')[0]
            at = path
            if is_directory and step.recursive:
                at = [*path, b"marker"]
            elif is_directory:
                self.ask(Request("DELETE", target_of(path, b"recursive=true")))
            reply = self.ask(form("PUT", target_of(at), b"value=marker"))
            if reply.status < 300:
                index = int(reply.one("x-etcd-index") or 0)
                if index >= step.since:
                    return index
            else:
                self._clear(reply, at)
        raise AssertionError(f"no event for {step} in {_MOST_MARKERS} attempts")

    def _clear(self, refusal: Reply, path: list[bytes]) -> None:
        """Remove what is in the way of this key: a directory of its name, or a file above it."""
        blocked = path
        if json.loads(refusal.body)["errorCode"] == _NOT_A_DIRECTORY:
            blocked = path[: json.loads(refusal.body)["cause"].count("/")]
        self.ask(Request("DELETE", target_of(blocked, b"recursive=true")))

    def _asked(self, side: Side, request: Request) -> Reply:
        try:
            return side.ask(request)
        except (ConnectionEnded, NothingCame, Unreadable) as error:
            return Reply(0, (), repr(error).encode())


def poll_of(path: list[bytes], *, recursive: bool, stream: bool, since: int = 0) -> Open:
    """A long poll for this path."""
    query = b"wait=true" + b"&recursive=true" * recursive + b"&stream=true" * stream
    query += b"&waitIndex=%d" % since if since else b""
    return Open(joined(path), target_of(path, query), recursive, stream, since)


def _lines(poll: Poll, last_index: int, stream: bool) -> list[bytes]:
    """What came on a poll: all of its answer, of a stream up to the event of this index.

    What should have come and did not is said in the last line.
    """
    lines: list[bytes] = []
    began = int(poll.head.one("x-etcd-index") or 0)
    try:
        while line := poll.next(_EVENT_TIMEOUT_S):
            lines.append(line)
            index = _index_of(line)
            # A stream that began with an event of the past has no other one in etcd, which does not register such a
            # watcher. Ours goes on, on purpose.
            if stream and index > 0 and (index >= last_index or (index <= began and len(lines) == 1)):
                return lines
        lines.append(b"the end")
    except NothingCame:
        lines.append(b"nothing more within the time")
    except (ConnectionEnded, Unreadable) as error:
        lines.append(repr(error).encode())
    return lines


def _index_of(line: bytes) -> int:
    try:
        return int(json.loads(line)["node"]["modifiedIndex"])
    except (ValueError, KeyError, TypeError):
        return 0
