"""Who may do what by the v2 API: guests, users with passwords, users with certificates, and root."""

from __future__ import annotations

import binascii

import bcrypt
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.v2tree import QUICK, Threads, TreeMember
from twistedkv.protocols.rpc import Peer
from twistedkv.protocols.v2access import Credentials, V2Gate, basic_credentials
from twistedkv.protocols.v2passwords import Passwords
from twistedkv.protocols.v2words import OpenAccess, V2Access, V2Request
from twistedkv.v2auth import GUEST_ROLE, Permissions, Role, User

_HASHES = {name: bcrypt.hashpw(name.encode(), bcrypt.gensalt(QUICK, b"2a")).decode() for name in ("root", "bob", "eve")}


def basic(user: str, password: str) -> str:
    """The field that says so."""
    return "Basic " + binascii.b2a_base64(f"{user}:{password}".encode(), newline=False).decode()


def request(method: str = "GET", authorization: str = "", common_name: str | None = None) -> V2Request:
    """A request, as far as access goes."""
    fields = (("authorization", authorization),) if authorization else ()
    return V2Request(method, "/v2/keys/x", "", fields, b"", Peer("127.0.0.1", 1, common_name, common_name is not None))


class CredentialsTests(SynchronousTestCase):
    def test_what_is_understood(self) -> None:
        """The name of the scheme may be in any case, and the password have any bytes, colons included."""
        for field, expected in (
            ("Basic cm9vdDpwdw==", Credentials("root", b"pw")),
            ("bASIC cm9vdDpwdw==", Credentials("root", b"pw")),
            ("Basic Og==", Credentials("", b"")),
            ("Basic YTpiOmM=", Credentials("a", b"b:c")),
            ("Basic /zr/", Credentials("\udcff", b"\xff")),
        ):
            self.assertEqual(basic_credentials(field), expected)

    def test_what_is_not(self) -> None:
        """Other schemes and what is no base64, or has no colon, say nothing."""
        for field in (
            *("", "Basic", "Basic ", "Bearer x", "Basic  cm9vdDpwdw==", "Basic cm9vdDpwdw", "Basic cm9vdDpwdw== "),
            *("Basic !!!", "Basic cm9vdA==", "Basiccm9vdDpwdw==", "Basic cm9v\u00e9DpwdwA", "Basic cm9vdDpwdw==cm9v"),
        ):
            self.assertIsNone(basic_credentials(field), field)


class GateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.member = TreeMember()
        self.threads = Threads()
        self.gate = self.made(by_certificate=False)
        self.put("/2/enabled", "true")
        self.role("guest", Permissions(("/pub*",)))
        self.role("rr", Permissions(("/r*",), ("/r/w", "/t/*")))
        self.user("root")
        self.user("bob", "nowhere", "rr")
        self.user("eve", "root")

    def made(self, *, by_certificate: bool) -> V2Gate:
        """A gate before the member's keys."""
        return V2Gate(self.member, Passwords(self.threads, QUICK), by_certificate)

    def put(self, path: str, value: str) -> None:
        """Have ``value`` in the store."""
        self.member.directory.set(path, False, value)

    def role(self, name: str, permissions: Permissions) -> None:
        """Have such a role."""
        self.put(f"/2/roles/{name}", Role(name, permissions).encoded())

    def user(self, name: str, *roles: str) -> None:
        """Have such a user, the name as the password."""
        self.put(f"/2/users/{name}", User(name, _HASHES[name], roles).encoded())

    def answer(self, verdict: bool | Deferred[bool]) -> bool:
        """However it comes."""
        return self.successResultOf(verdict) if isinstance(verdict, Deferred) else verdict

    def may(self, method: str, key: str, field: str = "", *, recursive: bool = False, cn: str | None = None) -> bool:
        """Whether a client may."""
        return self.answer(self.gate.may_use_key(request(method, field, cn), key, recursive))

    def test_it_is_what_others_ask(self) -> None:
        """It can stand where nothing is checked."""
        accesses: list[V2Access] = [self.gate, OpenAccess()]
        for access in accesses:
            self.assertTrue(self.answer(access.may_use_key(request(), "/pub", False)))
            self.assertTrue(self.answer(access.may_administer(request())))
        self.assertTrue(OpenAccess().may_administer(request("DELETE")))

    def test_everybody_while_it_is_off(self) -> None:
        """Whatever somebody says of itself, and without a look at it."""
        for off in ("false", None):
            if off is None:
                self.member.directory.delete("/2", recursive=True)
            else:
                self.put("/2/enabled", off)
            for field in ("", basic("bob", "wrong"), "rubbish"):
                self.assertIs(self.gate.open_to_all(), True)
                self.assertIs(self.gate.may_administer(request("POST", field)), True)
                self.assertIs(self.gate.is_root(request("GET", field)), True)
        self.assertEqual(self.threads.runs, 0)

    def test_a_check_that_is_off_counts_one_read(self) -> None:
        """As etcd's does, so that the statistics of the store are the same."""
        self.member.directory.delete("/2", recursive=True)
        before = dict(self.member.directory.counters.counts)
        self.gate.open_to_all()
        after = self.member.directory.counters.counts
        self.assertEqual(
            {name: after[name] - before[name] for name in after if after[name] != before[name]}, {"getsFail": 1}
        )

    def test_guests(self) -> None:
        """Who shows no credentials has what the role guest has, of which one key is enough for all below it."""
        for method, key, recursive, allowed in (
            ("GET", "/pub", False, True),
            ("HEAD", "/public/x", True, True),
            ("GET", "/x", False, False),
            ("GET", "", False, False),
            ("PUT", "/pub", False, False),
            ("POST", "/pub", False, False),
            ("DELETE", "/pub", True, False),
        ):
            self.assertIs(self.may(method, key, recursive=recursive), allowed, (method, key))
        self.role("guest", Permissions(("/one",)))
        self.assertTrue(self.may("GET", "/one", recursive=True))
        self.member.directory.delete("/2/roles/guest")
        self.assertFalse(self.may("GET", "/one"))
        self.put("/2/roles/guest", "rubbish")
        self.assertFalse(self.may("GET", "/one"))
        self.assertEqual(self.threads.runs, 0)

    def test_the_guest_of_the_beginning(self) -> None:
        """As long as nobody changes the role, guests may do everything but with the root by its bare name."""
        self.put("/2/roles/guest", GUEST_ROLE.encoded())
        self.assertTrue(self.may("PUT", "/x"))
        self.assertTrue(self.may("DELETE", "/", recursive=True))
        self.assertFalse(self.may("GET", ""))

    def test_users(self) -> None:
        """A user may do what one of the roles allows; all below a key only by a pattern for it."""
        bob = basic("bob", "bob")
        for method, key, recursive, allowed in (
            ("GET", "/r", False, True),
            ("GET", "/rx", True, True),
            ("GET", "/t/x", False, False),
            ("GET", "", True, False),
            ("GET", "/pub", False, False),  # a user is no guest
            ("DELETE", "/r/w", False, True),
            ("DELETE", "/r/w", True, False),
            ("DELETE", "/t", True, False),
            ("DELETE", "/t/", True, True),
            ("PUT", "/t/zz", True, True),
            ("POST", "/t", False, False),
        ):
            self.assertIs(self.may(method, key, bob, recursive=recursive), allowed, (method, key, recursive))

    def test_root_and_its_role(self) -> None:
        """Whoever has the role root may do everything, and nobody else may change more than keys."""
        for name, allowed in (("root", True), ("eve", True), ("bob", False)):
            field = basic(name, name)
            self.assertIs(self.may("DELETE", "", field, recursive=True), allowed)
            self.assertIs(self.answer(self.gate.may_administer(request("POST", field))), allowed)
            self.assertIs(self.answer(self.gate.is_root(request("GET", field))), allowed)
        self.assertFalse(self.gate.may_administer(request("PUT")))
        self.assertFalse(self.gate.is_root(request("GET")))
        for method in ("GET", "HEAD"):
            self.assertIs(self.gate.may_administer(request(method)), True)

    def test_wrong_credentials(self) -> None:
        """Whoever says who it is, and is not, has not even what guests have."""
        for field in (
            basic("bob", "wrong"),
            basic("nobody", "x"),
            basic("", ""),
            "Bearer x",
            "Basic !",
            basic("users", "x"),
        ):
            self.assertFalse(self.may("GET", "/pub", field), field)
            self.assertFalse(self.answer(self.gate.is_root(request("GET", field))), field)

    def test_the_first_field_counts(self) -> None:
        """Of several ``Authorization`` fields the first is looked at."""
        asked = request()._replace(
            fields=(("authorization", basic("bob", "wrong")), ("authorization", basic("bob", "bob")))
        )
        self.assertFalse(self.answer(self.gate.may_use_key(asked, "/r", False)))

    def test_changes_count_at_once(self) -> None:
        """A role that is taken away, a new password and a removed user count with the next request."""
        bob = basic("bob", "bob")
        self.assertTrue(self.may("GET", "/r", bob))
        self.role("rr", Permissions())
        self.assertFalse(self.may("GET", "/r", bob))
        self.user("bob", "root")
        self.assertTrue(self.may("GET", "/r", bob))
        self.put("/2/users/bob", User("bob", _HASHES["eve"], ("root",)).encoded())
        self.assertFalse(self.may("GET", "/r", bob))
        self.user("bob", "root")
        self.member.directory.delete("/2/users/bob")
        self.assertFalse(self.may("GET", "/r", bob))

    def test_a_broken_user(self) -> None:
        """A user or role in the store that is none is as good as none."""
        self.put("/2/users/bob", "rubbish")
        self.assertFalse(self.may("GET", "/r", basic("bob", "bob")))
        self.user("bob", "rr", "root")
        self.put("/2/roles/rr", "rubbish")
        self.assertTrue(self.may("GET", "/r", basic("bob", "bob")))

    def test_a_file_where_the_users_should_be(self) -> None:
        """Nobody is anybody then."""
        self.member.directory.delete("/2/users", recursive=True)
        self.member.directory.delete("/2/roles", recursive=True)
        self.put("/2/users", "x")
        self.put("/2/roles", "x")
        self.assertFalse(self.may("GET", "/r", basic("bob", "bob")))
        self.assertFalse(self.may("GET", "/pub"))

    def test_passwords_are_looked_at_in_threads(self) -> None:
        """The answer comes later, at once for a password that was right before, and may be cancelled."""
        self.threads.held = []
        verdict = self.gate.may_use_key(request("GET", basic("bob", "bob")), "/r", False)
        lost = self.gate.may_use_key(request("GET", basic("bob", "bob")), "/r", False)
        assert isinstance(verdict, Deferred)
        assert isinstance(lost, Deferred)
        self.assertNoResult(verdict)
        lost.cancel()
        self.failureResultOf(lost, CancelledError)
        self.threads.release()
        self.assertTrue(self.successResultOf(verdict))
        self.assertIs(self.gate.may_use_key(request("GET", basic("bob", "bob")), "/r", False), True)
        self.assertIs(self.gate.may_use_key(request("GET", basic("bob", "bob")), "/x", False), False)

    def test_names_that_nobody_has_take_their_time(self) -> None:
        """For them a hash is made, too."""
        runs = self.threads.runs
        self.may("GET", "/r", basic("nobody", "x"))
        self.assertEqual(self.threads.runs, runs + 1)

    def test_certificates(self) -> None:
        """Where they are demanded, the common name is a user's; else it says nothing."""
        self.assertFalse(self.may("GET", "/r", cn="bob"))
        self.assertFalse(self.gate.is_root(request("GET", "", "root")))
        self.gate = self.made(by_certificate=True)
        self.assertTrue(self.may("GET", "/r", cn="bob"))
        self.assertFalse(self.may("PUT", "/r", cn="bob"))
        self.assertFalse(self.gate.is_root(request("GET", "", "bob")))
        self.assertTrue(self.gate.is_root(request("GET", "", "root")))
        self.assertTrue(self.gate.may_administer(request("PUT", "", "eve")))
        self.assertEqual(self.threads.runs, 0)

    def test_certificates_of_others(self) -> None:
        """Who has one that names no user, or none, is a guest, and nothing beyond."""
        self.gate = self.made(by_certificate=True)
        for name in ("client", "", "../roles/rr", "users", None):
            self.assertTrue(self.may("GET", "/pub", cn=name))
            self.assertFalse(self.may("GET", "/r", cn=name))
            self.assertFalse(self.gate.is_root(request("GET", "", name)))
            self.assertFalse(self.gate.may_administer(request("PUT", "", name)))

    def test_a_password_comes_before_a_certificate(self) -> None:
        """Whoever gives one is that user, or nobody."""
        self.gate = self.made(by_certificate=True)
        self.assertFalse(self.may("GET", "/x", basic("bob", "bob"), cn="root"))
        self.assertFalse(self.may("GET", "/x", basic("bob", "wrong"), cn="root"))
        self.assertTrue(self.answer(self.gate.is_root(request("GET", basic("root", "root"), "bob"))))
