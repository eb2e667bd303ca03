"""Seeded random steps for the differential test of the v2 API: requests, long polls, and keys that expire.

The tree is small and odd on purpose: few names, nested in one another, so that a key under a file, a directory over a
file and a comparison that fails are common; some names are hidden, some need escapes in a target or in JSON, one is no
UTF-8. Parameters come in the query, in a form or in both, in any order and sometimes twice. A source is told what the
reference answered, so that indexes and values that are right come up as often as wrong ones.

Left out is the request that is answered differently on purpose: an update (``prevExist=true``) of a directory without a
value. Whether a path is a directory only the servers know, so such steps say that they are for files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from urllib.parse import quote_from_bytes, unquote_to_bytes

from tests.functional.v2client import FORM, Reply, Request

KEYS = b"/v2/keys"
TOP = (b"a", b"b", b"c", b"_h", "é".encode(), b"sp ace")
"""The names right below the root; what a listing does not show is among them."""
_NAMES = (*TOP, b"d", b"a", b"b", b"c", b"x.y", b"<k&>", b"\xff", b"q", b"_h", b"0", b"n" * 200, b"=;,+%?#")
VALUES = (
    *(b"", b"", b"x", b"x", b"y", b"xx", b"1", "naïve ☃ 🐍".encode(), b"<a href='x'>&amp;</a>", b"\x00\x01\x1f\x7f"),
    *(b"\xff\xfe", b"\xed\xa0\x80", "\u2028\u2029".encode(), b'"\\/\b\f\n\r\t', b"a=b&c;d%25+e", b"v" * 3000),
)
LONG_TTLS = (5000, 86_400, 4_294_967_296)
"""No key with one of them ends while a test runs."""
BAD_VALUES = (
    b"",
    b"nope",
    b"-1",
    b"1.5",
    b"+1",
    b"tRUE",
    b"yes",
    b"2000",
    b" 1",
    b"99999999999999999999",
    b"\xff",
    b"0x1",
)
_FLAGS = (b"recursive", b"sorted", b"wait", b"dir", b"quorum", b"stream", b"noValueOnSuccess", b"prevExist", b"refresh")
_NUMBERS = (b"prevIndex", b"waitIndex", b"ttl")
_TRUE = (b"true", b"true", b"true", b"1", b"t", b"T", b"TRUE", b"True")
_FALSE = (b"false", b"0", b"f", b"F", b"FALSE", b"False")
_ESCAPED = re.compile(rb"%([89A-F][0-9A-F])")  # what is no ASCII
_MOST_DEPTH = 4
_HISTORY = 1000  # events that etcd keeps
_SHORT_TTL_S = 2
_MOST_WATCHES = 8
_REMEMBERED = 60  # paths that come up again


@dataclass(frozen=True, slots=True)
class Ask:
    """One request; with ``only_on_file`` it is left out where that path is a directory."""

    request: Request
    only_on_file: bytes | None = None

    def __str__(self) -> str:
        return str(self.request)


@dataclass(frozen=True, slots=True)
class Open:
    """A long poll is opened."""

    path: bytes
    target: bytes
    recursive: bool
    stream: bool
    since: int = 0  # its waitIndex; 0 if it has none

    def __str__(self) -> str:
        return f"open GET {self.target.decode('latin-1')}"


@dataclass(frozen=True, slots=True)
class Finish:
    """An open long poll gets an event that ends it, and all that came on it is compared."""

    number: int  # of the poll among those that are open

    def __str__(self) -> str:
        return f"finish watch {self.number}"


@dataclass(frozen=True, slots=True)
class Expire:
    """Keys and directories with short times to live are made, and their ends awaited."""

    requests: tuple[Request, ...]  # the last makes :attr:`last`
    place: bytes  # they are below it, all but the last
    last: bytes  # the path that ends after all others

    def __str__(self) -> str:
        return "expire " + ", ".join(map(str, self.requests))


Step = Ask | Open | Finish | Expire


@dataclass(slots=True)
class Known:
    """What the reference has shown of its store."""

    index: int = 0
    nodes: dict[bytes, tuple[int, bytes | None]] = field(default_factory=dict)  # path: modifiedIndex, value of a file


class V2OperationSource:
    """Makes one step after another.

    Args:
        random: the seeded dice.
        expire_odds: of a step that waits for keys to expire; it takes more than two seconds.
    """

    def __init__(self, random: Random, expire_odds: float = 0.0) -> None:
        self._random = random
        self._expire_odds = expire_odds
        self._open = 0
        self.known = Known()
        self._weighted: tuple[tuple[int, Callable[[], Step]], ...] = (
            (26, self._get),
            (20, self._set),
            (7, self._create),
            (8, self._update),
            (9, self._swap),
            (6, self._compare_and_delete),
            (9, self._delete),
            (5, self._post),
            (5, self._refresh),
            (6, self._bad),
            (8, self._watch),
            (4, self._finish),
        )

    def next(self) -> Step:
        """The next step."""
        if self._chance(self._expire_odds):
            return self.expiry()
        weights, makers = zip(*self._weighted, strict=True)
        step = self._random.choices(makers, weights)[0]()
        match step:
            case Open():
                self._open += 1
            case Finish():
                self._open -= 1
        return step

    def finish_all(self) -> list[Finish]:
        """The steps that end every open long poll."""
        open_now, self._open = self._open, 0
        return [Finish(0) for _ in range(open_now)]

    def follow(self, request: Request, reply: Reply) -> None:
        """Learn from an answer of the reference."""
        index = reply.one("x-etcd-index")
        if index is not None:
            self.known.index = max(self.known.index, int(index))
        path = path_of(request.target)
        if reply.status == 404:
            self.known.nodes.pop(path, None)
        with suppress(ValueError, KeyError):  # no event
            event = json.loads(reply.body)
            node = event["node"]
            if request.method == "POST":
                path = node["key"].encode()
            self.known.nodes.pop(path, None)  # the newest come last
            if not event["action"].lower().endswith("delete"):
                value = None if "dir" in node else node["value"].encode()
                self.known.nodes[path] = (node["modifiedIndex"], value)

    def expiry(self) -> Expire:
        """Nodes with short times to live, nested in one another; what follows ends when the last does."""
        place = self._random.choice([b"a", b"_h", b"b"])
        ttl = b"ttl=%d" % _SHORT_TTL_S
        requests = [_form("PUT", [place, b"e%d" % n], b"value=%d&%s" % (n, ttl)) for n in range(3)]
        requests += [
            _form("PUT", [place, b"ed"], b"dir=true&" + ttl),
            _form("PUT", [place, b"ed", b"x", b"y"], b"value=below"),
            _form("PUT", [place, b"ed", b"late"], b"value=never&" + ttl),  # goes with its directory
            _form("PUT", [place, b"e1"], b"value=stays&prevExist=true&ttl="),
            _form("PUT", [place, b"e2"], b"refresh=true&prevExist=true&ttl=100"),
            _form("POST", [place, b"eq"], b"value=in+order&" + ttl),
            _form("PUT", [place, b"ed", b"z"], b"value=below&ttl=1"),  # goes before its directory
        ]
        last = b"last"
        wipe = [Request("DELETE", target_of([name], b"recursive=true")) for name in (place, last)]
        return Expire((*wipe, *requests, _form("PUT", [last], b"value=&" + ttl)), joined([place]), joined([last]))

    def _chance(self, odds: float) -> bool:
        return self._random.random() < odds

    def _path(self) -> list[bytes]:
        """The elements of a key's path; mostly one that has been there before."""
        random = self._random
        if self.known.nodes and self._chance(0.45):
            path = random.choice(list(self.known.nodes)[-_REMEMBERED:]).split(b"/")[1:]
            if self._chance(0.3):
                path = path[: random.randint(1, len(path))]
            if self._chance(0.2) and len(path) < _MOST_DEPTH:
                path = [*path, random.choice(_NAMES)]
            return [element for element in path if element]
        if self._chance(0.02):
            return []
        return [random.choice(TOP), *(random.choice(_NAMES) for _ in range(random.choice([0, 1, 1, 1, 2, 3])))]

    def _file(self) -> list[bytes]:
        """The path of a file, as far as known, or any path."""
        files = [path for path, (_, value) in self.known.nodes.items() if value is not None]
        if not files or self._chance(0.2):
            return self._path()
        return self._random.choice(files[-_REMEMBERED:]).split(b"/")[1:]

    def _target(self, path: list[bytes], query: bytes = b"") -> bytes:
        """A way to write the path: too many escapes or none, slashes as escapes, a slash at the end or twice."""
        random = self._random
        style = random.random()
        if style < 0.7:
            target = target_of(path)
        elif style < 0.74:
            target = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), target_of(path))  # bytes as they are
        elif style < 0.75:
            target = target_of([*path[:1], b"", *path[1:]])  # leads to a redirection
        elif style < 0.85:
            target = KEYS + b"".join(b"/" + b"".join(b"%%%02x" % byte for byte in element) for element in path)
        elif style < 0.92:
            target = KEYS + b"/" + b"%2F".join(target_of([element])[len(KEYS) + 1 :] for element in path)
        else:
            target = target_of(path).removesuffix(b"/") + b"/"
        return target + (b"?" + query if query or self._chance(0.02) else b"")

    def _flag(self, name: bytes, odds: float, lie_odds: float = 0.1) -> list[tuple[bytes, bytes]]:
        """The parameter with these odds; then it is mostly true."""
        if not self._chance(odds):
            return []
        return [(name, self._random.choice(_FALSE if self._chance(lie_odds) else _TRUE))]

    def _encoded(self, parameters: list[tuple[bytes, bytes]]) -> bytes:
        random = self._random
        pieces = []
        for name, value in parameters:
            if self._chance(0.1):
                written = b"".join(b"%%%02X" % byte for byte in value)
            else:
                written = quote_from_bytes(value, safe="").encode()
                if self._chance(0.5):
                    written = written.replace(b"%20", b"+")
            pieces.append(name + (b"=" + written))
        return random.choice([b"&", b"&", b"&", b"&", b"&&", b";"]).join(pieces)

    def _send(self, method: str, path: list[bytes], parameters: list[tuple[bytes, bytes]]) -> Request:
        """A request with these parameters, somewhere; repeated ones come after those that count."""
        random = self._random
        random.shuffle(parameters)
        if self._chance(0.05):
            parameters.append((b"unknown", b"x"))
        if method in ("GET", "HEAD", "DELETE"):
            if parameters and self._chance(0.04):
                parameters.append((parameters[0][0], random.choice(BAD_VALUES)))
            request = Request(method, self._target(path, self._encoded(parameters)))
            if method != "HEAD" and self._chance(0.03):  # which etcd does not read
                return request._replace(body=b"recursive=nope&ttl=nope", headers=(("Content-Type", FORM),))
            return request
        cut = random.choice([0, 0, 0, len(parameters), random.randint(0, len(parameters))])
        query, body = parameters[:cut], parameters[cut:]
        if body and self._chance(0.06):  # the body goes first
            query.append((body[0][0], random.choice(BAD_VALUES)))
        target = self._target(path, self._encoded(query))
        if not body and self._chance(0.5):
            return Request(method, target)
        kind = FORM + random.choice(["", "", "", "; charset=utf-8"])
        return Request(method, target, self._encoded(body), (("Content-Type", kind),), self._chance(0.05))

    def _some_index(self, path: list[bytes]) -> int:
        """Any that matters: the node's own, near it, the current one, none."""
        known = self.known.nodes.get(joined(path))
        current = self.known.index
        own = known[0] if known else current
        return self._random.choice([own, own, own, own, own - 1, own + 1, current, 1, 0, 2**64 - 1])

    def _some_value(self, path: list[bytes]) -> bytes:
        known = self.known.nodes.get(joined(path))
        candidates = [value for value in VALUES if value]
        return known[1] if known and known[1] and self._chance(0.7) else self._random.choice(candidates)

    def _ttl(self, odds: float = 0.2) -> list[tuple[bytes, bytes]]:
        if not self._chance(odds):
            return []
        return [(b"ttl", b"" if self._chance(0.15) else b"%d" % self._random.choice(LONG_TTLS))]

    def _value(self) -> list[tuple[bytes, bytes]]:
        return [] if self._chance(0.03) else [(b"value", self._random.choice(VALUES))]

    def _write_flags(self) -> list[tuple[bytes, bytes]]:
        return self._flag(b"dir", 0.12) + self._flag(b"noValueOnSuccess", 0.12) + self._flag(b"recursive", 0.02)

    def _get(self) -> Ask:
        method = "HEAD" if self._chance(0.12) else "GET"
        path = [] if self._chance(0.12) else self._path()
        parameters = self._flag(b"recursive", 0.45) + self._flag(b"sorted", 0.6) + self._flag(b"quorum", 0.25)
        return Ask(self._send(method, path, parameters + self._flag(b"noValueOnSuccess", 0.03)))

    def _set(self) -> Ask:
        return Ask(self._send("PUT", self._path(), self._value() + self._ttl() + self._write_flags()))

    def _create(self) -> Ask:
        path = self._path()
        parameters = [(b"prevExist", self._random.choice(_FALSE)), *self._value(), *self._ttl(), *self._write_flags()]
        if self._chance(0.1):
            parameters.append((b"prevValue", self._some_value(path)))
        return Ask(self._send("PUT", path, parameters))

    def _update(self) -> Ask:
        path = self._file()
        value = self._random.choice(VALUES)
        parameters = [(b"prevExist", self._random.choice(_TRUE)), (b"value", value), *self._ttl(0.4)]
        request = self._send("PUT", path, parameters + self._write_flags())
        return Ask(request, None if value else joined(path))

    def _swap(self) -> Ask:
        path = self._file()
        parameters = self._value() + self._ttl(0.15) + self._flag(b"noValueOnSuccess", 0.1)
        parameters += self._conditions(path) + self._flag(b"prevExist", 0.1, lie_odds=0.2)
        if self._chance(0.05):  # a refresh that compares
            parameters = [*self._conditions(path), (b"refresh", b"true"), (b"ttl", b"5000")]
        updates = any(name == b"prevExist" for name, _ in parameters)  # prevIndex=0 is none
        return Ask(self._send("PUT", path, parameters), joined(path) if updates else None)

    def _conditions(self, path: list[bytes]) -> list[tuple[bytes, bytes]]:
        by_index = (b"prevIndex", b"%d" % self._some_index(path))
        by_value = (b"prevValue", self._some_value(path))
        return self._random.choice([[by_index], [by_value], [by_index, by_value]])

    def _compare_and_delete(self) -> Ask:
        path = self._file()
        return Ask(self._send("DELETE", path, self._conditions(path) + self._flag(b"dir", 0.1)))

    def _delete(self) -> Ask:
        parameters = self._flag(b"dir", 0.3) + self._flag(b"recursive", 0.3) + self._flag(b"noValueOnSuccess", 0.03)
        return Ask(self._send("DELETE", self._path(), parameters))

    def _post(self) -> Ask:
        return Ask(self._send("POST", self._path(), self._value() + self._ttl() + self._write_flags()))

    def _refresh(self) -> Ask:
        path = self._file()
        parameters = [(b"refresh", self._random.choice(_TRUE)), (b"ttl", b"%d" % self._random.choice(LONG_TTLS))]
        parameters += self._flag(b"prevExist", 0.7)
        if self._chance(0.1):
            parameters.append((b"value", self._random.choice(VALUES)))
        return Ask(self._send("PUT", path, parameters), joined(path))

    def _bad(self) -> Ask:
        """A parameter that is no flag or no number, or a form that is none."""
        random = self._random
        method = random.choice(["GET", "GET", "PUT", "PUT", "POST", "DELETE", "HEAD"])
        path = self._path()
        name, value = random.choice((*_FLAGS, *_NUMBERS, b"prevValue")), random.choice(BAD_VALUES)
        if name == b"prevValue":
            value = b""
        parameters = [(name, value), *self._flag(b"dir", 0.2), *self._flag(b"recursive", 0.2)]
        if self._chance(0.2):
            parameters.append((random.choice(_FLAGS), random.choice(BAD_VALUES)))
        request = self._send(method, path, parameters)
        if self._chance(0.2):
            request = request._replace(target=request.target.partition(b"?")[0] + b"?x=%zz&ttl=1")
        return Ask(request)

    def _watch(self) -> Step:
        if self._open >= _MOST_WATCHES:
            return self._finish()
        random = self._random
        path = self._path() if self._chance(0.85) else []
        recursive = not path or self._chance(0.6)  # nothing ever happens to the root itself
        parameters = [(b"wait", random.choice(_TRUE))]
        if recursive:
            parameters.append((b"recursive", random.choice(_TRUE)))
        stream = self._flag(b"stream", 0.5)
        parameters += stream
        since, current = 0, self.known.index
        if self._chance(0.6):
            since = random.choice(
                [
                    *(current, current - 1, current + 1, current + 2, current + 3, max(current - 300, 1)),
                    *(current - _HISTORY + n for n in (-1, 0, 1, 2, 3)),
                    *(random.randint(1, max(current, 1)), random.randint(max(current - 50, 1), max(current, 1))),
                ]
            )
            since = max(since, 1)
            parameters.append((b"waitIndex", b"%d" % since))
        return Open(joined(path), self._target(path, self._encoded(parameters)), recursive, _is_true(stream), since)

    def _finish(self) -> Step:
        return Finish(self._random.randrange(self._open)) if self._open else self._get()


def joined(path: list[bytes]) -> bytes:
    """The key of a path as its elements."""
    return b"/" + b"/".join(path)


def path_of(target: bytes) -> bytes:
    """The key that a request's target means, without its parameters."""
    return b"/" + unquote_to_bytes(target.partition(b"?")[0])[len(KEYS) :].strip(b"/")


def target_of(path: list[bytes], query: bytes = b"") -> bytes:
    """The usual way to write it."""
    target = KEYS + b"".join(b"/" + quote_from_bytes(element, safe="").encode() for element in path)
    return target + (b"?" + query if query else b"")


def _is_true(flag: list[tuple[bytes, bytes]]) -> bool:
    return any(value in _TRUE for _, value in flag)


def _form(method: str, path: list[bytes], body: bytes) -> Request:
    return Request(method, target_of(path), body, (("Content-Type", FORM),))
