"""Our HTTP/1.1 front against a real etcd 3.5.1: status, headers and bodies of what does not depend on data."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.processes import MISSING_ETCD, EtcdProcess
from tests.protocols.httpfakes import Wire, parse, request

EMPTY_KEY = b'{"value":"YQ=="}'
PUT = "/v3/kv/put"


def _chunked(body: bytes) -> bytes:
    return request(PUT, b"", "POST").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + (
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    )


REQUESTS = (
    *(request(PUT, body) for body in (b"", EMPTY_KEY, b"nox", b'{"key":"Zm9"}', b'{"key":5}')),
    *(request(PUT, b"", method) for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS")),
    *(request(path) for path in ("/v3/", "/v3", "/v3/kv", "/v3/kv/put/", "/v3/KV/put", "/v3//kv/put", "/v3/./kv/put")),
    *(request(path) for path in ("/", "/nope", "//", "/health/", "/livez/nope")),
    *(request(path, EMPTY_KEY) for path in ("/v3beta/kv/put", "/v3/kv/put?key=YQ==", "/v3/kv/p%75t", f"http://x{PUT}")),
    *(request("/health", b"", method) for method in ("GET", "POST", "HEAD", "OPTIONS")),
    *(request("/health?exclude=NOSPACE&x", b"", "GET"), request("/version", b"", "POST")),
    request(PUT, EMPTY_KEY, "POST", "Connection: close"),
    request(PUT, EMPTY_KEY, "POST", "Origin: http://example.com", "Content-Type: text/html", "Accept: text/html"),
    *(request(PUT, EMPTY_KEY, "POST", f"Grpc-Timeout: {value}") for value in ("zz", "1", "", "5S", "-5S")),
    *(request(PUT, EMPTY_KEY, "POST", f"Grpc-Metadata-X-bin: {value}") for value in ("!!", "A", "AAAAA", "AA=")),
    *(request(path, body) for path in ("/v3/watch",) for body in (b"nox", b'{"create_request":{"key":"Zm9"}}')),
    request("/v3/maintenance/snapshot", b"nox"),
    _chunked(EMPTY_KEY),
    request(PUT, EMPTY_KEY).replace(b"Host: x\r\n", b""),
    request(PUT, EMPTY_KEY).replace(b"Host: x\r\n", b"Host: x\r\nHost: y\r\n"),
    request(PUT, EMPTY_KEY).replace(b"Host: x\r\n", b"Host: x\r\nA : y\r\n"),
    request(PUT, EMPTY_KEY).replace(b"Content-Length: ", b"Content-Length: +"),
)  # fmt: skip


class HTTPOfEtcdTests(SynchronousTestCase):
    """What a client of HTTP sees."""

    skip = MISSING_ETCD

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.server = EtcdProcess(Path(directory.name))
        self.addCleanup(self.server.stop)
        self.server.start()

    def ask(self, data: bytes) -> bytes:
        """What etcd answers on a connection of its own, which ends with the answer."""
        with socket.create_connection(("127.0.0.1", self.server.port), 10) as connection:
            connection.sendall(data + request("/", b"", "GET", "Connection: close"))
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        own, separator, _ = answer.rpartition(b"HTTP/1.1 404 Not Found\r\n")  # the answer to the closing request
        return own if own and separator else answer

    def test_answers_are_equal_but_for_the_date(self) -> None:
        """Status, headers and body are etcd's."""
        for data in REQUESTS:
            has_body = not data.startswith(b"HEAD ")
            theirs = parse(self.ask(data), has_body=has_body)
            ours = parse(Wire().send(data), has_body=has_body)
            for answer in (theirs, ours):
                answer[1].pop("date", None)
            self.assertEqual(ours, theirs, data)
