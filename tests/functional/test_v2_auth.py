"""Users and roles of the v2 API: real etcd and twistedkv answer the same sequence of requests in the same way.

The servers demand client certificates, so the common name of the test's own certificate is a user as well, for as long
as there is one of that name.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID
from twisted.trial.unittest import TestCase

from tests.functional import v2comparison
from tests.functional.processes import MISSING_ETCD, ServerProcess
from tests.functional.shared import level_v2_indexes, v2_pair
from tests.functional.v2client import Request, V2Client, form

_ROOT = "root:secret"
_READ_ALL = {"kv": {"read": ["/*"], "write": ["/*"]}}


def _credentials(user: str) -> tuple[tuple[str, str], ...]:
    return (("Authorization", "Basic " + base64.b64encode(user.encode()).decode()),) if user else ()


def common_name(certificate: Path) -> str:
    """Of a certificate's subject."""
    subject = x509.load_pem_x509_certificate(certificate.read_bytes()).subject
    (attribute,) = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attribute.value)


def auth(method: str, path: str, body: object = None, user: str = "") -> Request:
    """A request below ``/v2/auth``; ``user`` is a name and a password."""
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    return Request(method, f"/v2/auth/{path}".encode(), data, _credentials(user))


def key(method: str, path: str, user: str = "") -> Request:
    """A request for keys."""
    target = f"/v2/keys{path}".encode()
    if method in ("PUT", "POST"):
        return form(method, target, b"value=1", *_credentials(user))
    return Request(method, target, None, _credentials(user))


def while_off(common_name: str) -> Iterator[Request]:
    """How it begins: nobody is asked who it is, and users and roles are made."""
    yield auth("GET", "enable")
    yield auth("PUT", "enable")
    yield auth("DELETE", "enable")
    yield auth("GET", "users")
    yield auth("GET", "roles/")
    yield auth("DELETE", "users/nobody")
    yield auth("DELETE", "roles/nobody")
    yield auth("PUT", "users/bob", {"user": "bob"})
    yield auth("PUT", "users/bob", b"{")
    yield auth("PUT", "users/bob", b'{"USER":"bob","Password":"b","x":[1]} and more')
    yield auth("PUT", "users/bob", {"user": "bob"})
    yield auth("PUT", "users/bob", {"user": "bob"})
    yield auth("PUT", "users/bob", {"user": "bill", "password": "b"})
    yield auth("PUT", "users/root", {"user": "root", "password": "other"})
    yield auth("PUT", "users/root", {"user": "root", "password": "secret"})
    yield auth("PUT", "users/eve", {"user": "eve", "password": "x" * 100, "roles": ["root", "gone"]})
    yield auth("PUT", "users/eve", {"user": "eve", "password": "e", "roles": ["root"]})
    yield auth("GET", "users/eve")
    yield auth("PUT", "roles/rr", {"role": "rr"})
    yield auth("PUT", "roles/rr", {"role": "rr"})
    yield auth("PUT", "roles/rr", {"role": "rr", "grant": {"kv": {"read": ["/r*", "/<&>"], "write": ["/t/*", "/r/w"]}}})
    yield auth("PUT", "roles/rr", {"role": "rr", "grant": {"kv": {"read": ["/r*"]}}})
    yield auth("PUT", "roles/rr", {"role": "rr", "revoke": {"kv": {"read": ["/<&>", "/nowhere"]}}})
    yield auth("PUT", "roles/rr", {"role": "rr", "revoke": {"kv": {"read": ["/nowhere"]}}})
    yield auth("PUT", "roles/rr", {"role": "rr", "permissions": _READ_ALL, "grant": _READ_ALL})
    yield auth("PUT", "roles/root", {"role": "root"})
    yield auth("PUT", "roles/no", {"role": "no", "grant": _READ_ALL})
    yield auth("PUT", "users/bob", {"user": "bob", "grant": ["rr", "rr2"]})
    yield auth("GET", "users/bob")
    yield auth("PUT", "users/bob", {"user": "bob", "revoke": ["rr2"]})
    yield auth("PUT", "users/bob", {"user": "bob", "revoke": ["rr2"]})
    yield auth("PUT", "users/bob", {"user": "bob", "grant": ["rr"]})
    yield auth("PUT", "users/bob", {"user": "bob", "grant": ["x"], "roles": ["y"]})
    yield auth("PUT", f"users/{common_name}", {"user": common_name, "password": "c", "roles": ["rr"]})
    yield auth("GET", "users")
    yield auth("GET", "users?x=%zz")
    yield auth("GET", "users/%3Cb%3E%ff")
    yield auth("GET", "users/a/b")
    yield auth("POST", "users/bob")
    yield auth("HEAD", "enable")
    yield auth("GET", "enable/")
    yield auth("GET", "")
    yield key("PUT", "/x")


def while_on(common_name: str) -> Iterator[Request]:
    """What clients may do when the checks are on: as guests, by passwords, by their certificate."""
    yield auth("PUT", "enable")
    yield auth("GET", "enable")
    yield auth("PUT", "enable")
    yield auth("PUT", "enable", user=_ROOT)
    yield auth("GET", "roles", user=_ROOT)
    for user in ("bob:b", "bob:wrong", "nobody:x"):
        yield auth("GET", "roles", user=user)
    yield key("GET", "/x", user="bob:wrong")
    yield key("GET", "/x", user="bob:b")
    yield key("GET", "/r", user="bob:b")
    yield key("GET", "/r?recursive=true", user="bob:b")
    yield key("PUT", "/t/x", user="bob:b")
    yield key("POST", "/t", user="bob:b")
    yield key("DELETE", "/t?recursive=true", user="bob:b")
    yield key("DELETE", "/t/?recursive=true&dir=true", user="bob:b")
    yield key("DELETE", "/r/w?recursive=true", user="bob:b")
    yield key("GET", "/x?recursive=true", user="eve:e")
    yield key("GET", "/x?recursive=true", user="eve:" + "x" * 72)  # bytes past those do not count
    yield key("GET", "", user=_ROOT)
    for method, path in (("GET", "/x"), ("GET", "/rx"), ("PUT", "/r/w"), ("PUT", "/x"), ("GET", "/x?wait=true")):
        yield key(method, path)  # by the certificate
    yield Request("POST", b"/v2/members", b"{}")
    yield Request("DELETE", b"/v2/members/zz")
    yield Request("DELETE", b"/v2/members/zz", None, _credentials(_ROOT))
    yield auth("DELETE", f"users/{common_name}", user=_ROOT)
    for method, path in (("GET", "/x"), ("PUT", "/x"), ("GET", ""), ("GET", "/"), ("GET", "/?recursive=true")):
        yield key(method, path)  # which is a guest's now
    yield auth("GET", "users")
    revoked = {"role": "guest", "revoke": _READ_ALL, "grant": {"kv": {"read": ["/x"]}}}
    yield auth("PUT", "roles/guest", revoked, user=_ROOT)
    for method, path in (("GET", "/x"), ("HEAD", "/x"), ("GET", "/x?recursive=true"), ("PUT", "/x"), ("HEAD", "/y")):
        yield key(method, path)
    yield key("GET", "/y?recursive=bad")
    yield Request("GET", b"/v2/members/leader")
    yield Request("GET", b"/v2/keys/x", None, (("Authorization", "Bearer x"),))
    yield auth("PUT", "users/bob", {"user": "bob", "password": "new"}, user=_ROOT)
    yield key("GET", "/r", user="bob:b")
    yield key("GET", "/r", user="bob:new")
    yield auth("DELETE", "roles/rr", user=_ROOT)
    yield auth("DELETE", "roles/rr", user=_ROOT)
    yield key("GET", "/r", user="bob:new")
    yield auth("DELETE", "users/root", user=_ROOT)


def afterwards(common_name: str) -> Iterator[Request]:
    """How everything is as it was."""
    yield auth("DELETE", "enable", user=_ROOT)
    yield auth("DELETE", "enable")
    for path in ("roles/guest", "roles/rr", "users/bob", "users/eve", f"users/{common_name}", "users/root"):
        yield auth("DELETE", path)
    yield auth("GET", "users")
    yield auth("GET", "roles")
    yield key("DELETE", "/x")
    yield key("DELETE", "/r?recursive=true")


class V2AuthTests(TestCase):
    skip = MISSING_ETCD

    def restore(self, servers: Sequence[ServerProcess], name: str) -> None:
        """Leave both as they were, also after a failure."""
        for server in servers:
            with closing(V2Client(server)) as client:
                for request in afterwards(name):
                    client.ask(request)
        level_v2_indexes(servers)

    def test_the_same_as_etcd(self) -> None:
        """Status, headers and bodies of all of it are etcd's, and so is the index that the changes lead to."""
        pair = v2_pair()
        servers = (pair.etcd, pair.twistedkv)
        level_v2_indexes(servers)
        assert pair.etcd.tls is not None
        name = common_name(pair.etcd.tls.client_cert)
        self.addCleanup(self.restore, servers, name)
        with closing(V2Client(pair.etcd)) as etcd, closing(V2Client(pair.twistedkv)) as twistedkv:
            for step in (while_off, while_on, afterwards):
                for request in step(name):
                    expected, found = etcd.ask(request), twistedkv.ask(request)
                    if not v2comparison.equal(request, expected, found):
                        self.fail("\n".join((str(request), *v2comparison.report(request, expected, found))))
