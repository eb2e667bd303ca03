"""``/v2/auth`` as a client sees it, and what goes through the log for it."""

from __future__ import annotations

import binascii
import json

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.httpfakes import PEER, RecordingOutlet
from tests.protocols.v2tree import QUICK, Threads, TreeMember
from twistedkv.errors import RequestTimeoutError
from twistedkv.protocols.answers import PAGE_NOT_FOUND, Answer
from twistedkv.protocols.v2access import V2Gate
from twistedkv.protocols.v2auth import V2Auth
from twistedkv.protocols.v2authstore import AuthStore
from twistedkv.protocols.v2passwords import Passwords
from twistedkv.protocols.v2words import V2Request

_JSON = (b"Content-Type", b"application/json")
_CLUSTER = (b"X-Etcd-Cluster-Id", b"abcdef")
_ROOT_ROLE = '{"role":"root","permissions":{"kv":{"read":["/*"],"write":["/*"]}}}'


class AuthCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.member = TreeMember()
        self.threads = Threads()
        self.passwords = Passwords(self.threads, QUICK)
        self.auth = self.made()

    def made(self) -> V2Auth:
        """The endpoint as a member has it after its start."""
        gate = V2Gate(self.member, self.passwords, False)
        return V2Auth(self.member, gate, AuthStore(self.member, self.passwords))

    def send(self, method: str, path: str, body: str | bytes = b"", user: str = "", query: str = "") -> RecordingOutlet:
        """Send a request; ``user`` has its name as its password."""
        credentials = binascii.b2a_base64(f"{user}:{user}".encode(), newline=False).decode()
        fields = (("authorization", f"Basic {credentials}"),) if user else ()
        data = body.encode() if isinstance(body, str) else body
        outlet = RecordingOutlet()
        self.left = self.auth.serve(V2Request(method, f"/v2/auth/{path}", query, fields, data, PEER), outlet)
        return outlet

    def ask(self, method: str, path: str, body: str | bytes = b"", user: str = "", query: str = "") -> Answer:
        """Send a request and get its answer."""
        (answer,) = self.send(method, path, body, user, query).answers
        return answer

    def check(self, answer: Answer, status: int, body: str) -> None:
        """Compare an answer that carries the cluster's id."""
        self.assertEqual((answer.status, answer.body.decode()), (status, body))
        self.assertEqual([*answer.fields.pairs], [_JSON, _CLUSTER])

    def refused(self, answer: Answer, status: int, text: str) -> None:
        """Compare an answer that says no."""
        self.check(answer, status, f'{{"message":"{text}"}}')

    def tell(self, method: str, path: str, body: str = "", user: str = "") -> None:
        """Send a request that has to succeed."""
        answer = self.ask(method, path, body, user)
        self.assertIn(answer.status, (200, 201), answer.body)

    def stored(self, path: str) -> str:
        """What the store holds."""
        value = self.member.directory.get(path).node.value
        assert value is not None
        return value


class PathTests(AuthCase):
    def test_methods(self) -> None:
        """Others than those that a path has are refused before anything else is looked at."""
        for path, methods, allowed in (
            ("enable", ("HEAD", "POST", "PATCH", "get"), b"GET,PUT,DELETE"),
            ("users", ("HEAD", "PUT", "DELETE", "POST"), b"GET"),
            ("roles/", ("HEAD", "PUT", "DELETE", "POST"), b"GET"),
            ("users/x", ("HEAD", "POST"), b"GET,PUT,DELETE"),
            ("roles/x/", ("HEAD", "POST"), b"GET,PUT,DELETE"),
        ):
            for method in methods:
                answer = self.ask(method, path)
                self.assertEqual((answer.status, answer.body), (405, b"Method Not Allowed\n"))
                self.assertEqual(answer.fields.pairs[0], (b"Allow", allowed))
                self.assertNotIn(_CLUSTER, answer.fields.pairs)

    def test_paths(self) -> None:
        """Elsewhere there is nothing, and a name has no slash."""
        for path in ("", "enable/", "enable/x", "other", "usersx"):
            self.assertIs(self.ask("GET", path), PAGE_NOT_FOUND)
        for path in ("users/a/b", "roles/a/b/c", "users/a/b/"):
            for method in ("GET", "POST"):
                answer = self.ask(method, path)
                self.assertEqual((answer.status, answer.body), (400, b'{"message":"Invalid path"}'))
                self.assertEqual([*answer.fields.pairs], [_JSON])

    def test_credentials_are_needed(self) -> None:
        """Once the checks are on only root is answered, but for the question whether they are."""
        self.tell("PUT", "users/root", '{"user":"root","password":"root"}')
        self.tell("PUT", "users/bob", '{"user":"bob","password":"bob"}')
        self.tell("PUT", "enable")
        self.check(self.ask("GET", "enable"), 200, '{"enabled":true}\n')
        for user in ("", "bob", "nobody"):
            for method, path in (
                ("PUT", "enable"),
                ("GET", "users"),
                ("GET", "roles"),
                ("PUT", "users/x"),
                ("DELETE", "roles/x"),
            ):
                answer = self.ask(method, path, user=user)
                self.assertEqual((answer.status, answer.body), (401, b'{"message":"Insufficient credentials"}'))
                self.assertEqual([*answer.fields.pairs], [_JSON])
        self.tell("GET", "users", user="root")

    def test_broken_queries(self) -> None:
        """Lists and users are not shown to whoever sends a malformed query; the order of mistakes is etcd's."""
        self.tell("PUT", "users/u", '{"user":"u","password":"u"}')
        for path in ("users", "roles", "users/u"):
            self.refused(self.ask("GET", path, query="x=%zz"), 500, "Internal Server Error")
            self.assertEqual(self.ask("GET", path, query="x=%7a&%20").status, 200)
        self.assertEqual(self.ask("GET", "roles/root", query="x=%zz").status, 200)
        self.refused(self.ask("GET", "users/no", query="x=%zz"), 404, "auth: User no does not exist.")


class EnableTests(AuthCase):
    def test_a_root_user_is_needed(self) -> None:
        """Nobody could turn the checks off otherwise."""
        self.check(self.ask("GET", "enable"), 200, '{"enabled":false}\n')
        self.refused(self.ask("PUT", "enable"), 409, "auth: No root user available, please create one")
        self.refused(self.ask("DELETE", "enable"), 409, "auth: already disabled")
        self.assertEqual(self.member.proposed, [])

    def test_on_and_off(self) -> None:
        """Turning on makes the guest who may do everything, and goes through the log as etcd sends it."""
        self.tell("PUT", "users/root", '{"user":"root","password":"root"}')
        del self.member.proposed[:]
        self.check(self.ask("PUT", "enable"), 200, "")
        role = _ROOT_ROLE.replace("root", "guest")
        sent = [(each.Method, each.Path, each.Val.decode(), each.PrevExist) for each in self.member.proposed]
        self.assertEqual(sent, [("PUT", b"/2/roles/guest", role, False), ("PUT", b"/2/enabled", "true", True)])
        self.refused(self.ask("PUT", "enable", user="root"), 409, "auth: already enabled")
        self.refused(
            self.ask("DELETE", "users/root", user="root"), 403, "auth: Cannot delete root user while auth is enabled."
        )
        self.check(self.ask("DELETE", "enable", user="root"), 200, "")
        self.check(self.ask("GET", "enable"), 200, '{"enabled":false}\n')
        self.check(self.ask("DELETE", "users/root"), 200, "")

    def test_a_guest_who_is_there_stays(self) -> None:
        """What guests may do can be said before."""
        self.tell("PUT", "users/root", '{"user":"root","password":"root"}')
        self.tell("PUT", "roles/guest", '{"role":"guest"}')
        self.tell("PUT", "enable")
        self.assertEqual(
            self.stored("/2/roles/guest"), '{"role":"guest","permissions":{"kv":{"read":null,"write":null}}}'
        )


class UserTests(AuthCase):
    def test_making(self) -> None:
        """A user who is new is made with 201, with roles given with 200; the password is never shown."""
        self.check(self.ask("GET", "users"), 200, '{"users":null}\n')
        self.check(self.ask("PUT", "users/u", '{"user":"u","password":"p"}'), 201, '{"user":"u","roles":null}\n')
        self.check(
            self.ask("PUT", "users/v", '{"user":"v","password":"p","roles":["b","a"]}'),
            *(200, '{"user":"v","roles":["b","a"]}\n'),
        )
        self.check(
            self.ask("PUT", "users/root", '{"user":"root","password":"p"}'), 201, '{"user":"root","roles":["root"]}\n'
        )
        user = json.loads(self.stored("/2/users/u"))
        self.assertEqual(list(user), ["user", "password", "roles"])
        self.assertRegex(user["password"], r"^\$2a\$04\$")
        self.check(
            self.ask("GET", "users"),
            *(200, f'{{"users":[{{"user":"root","roles":[{_ROOT_ROLE}]}},{{"user":"u"}},{{"user":"v"}}]}}\n'),
        )

    def test_the_store_is_prepared_once(self) -> None:
        """The first change after a start makes the directories, as in etcd; that they are there is no matter."""
        prepared = [b"/2", b"/2/users/", b"/2/roles/", b"/2/enabled"]
        self.tell("PUT", "users/u", '{"user":"u","password":"p"}')
        self.assertEqual([each.Path for each in self.member.proposed], [*prepared, b"/2/users/u"])
        self.assertEqual([each.Dir for each in self.member.proposed], [True, True, True, False, False])
        self.assertTrue(all(each.HasField("PrevExist") and not each.PrevExist for each in self.member.proposed))
        self.assertEqual(self.stored("/2/enabled"), "false")
        del self.member.proposed[:]
        self.tell("PUT", "users/v", '{"user":"v","password":"p"}')
        self.assertEqual(len(self.member.proposed), 1)
        del self.member.proposed[:]
        self.auth = self.made()
        self.tell("DELETE", "users/v")
        self.assertEqual([each.Path for each in self.member.proposed], [*prepared, b"/2/users/v"])
        self.assertEqual((self.member.proposed[-1].Method, self.member.proposed[-1].PrevExist), ("DELETE", True))

    def test_changing(self) -> None:
        """Passwords and roles are changed, and the roles are shown in full where a user is."""
        self.tell("PUT", "users/u", '{"user":"u","password":"p"}')
        before = json.loads(self.stored("/2/users/u"))["password"]
        self.tell("PUT", "roles/r", '{"role":"r"}')
        self.check(
            self.ask("PUT", "users/u", '{"user":"u","grant":["r","root"]}'), 200, '{"user":"u","roles":["r","root"]}\n'
        )
        self.assertEqual(json.loads(self.stored("/2/users/u"))["password"], before)
        role = '{"role":"r","permissions":{"kv":{"read":null,"write":null}}}'
        self.check(self.ask("GET", "users/u"), 200, f'{{"user":"u","roles":[{role},{_ROOT_ROLE}]}}\n')
        self.check(self.ask("PUT", "users/u", '{"user":"u","revoke":["root"]}'), 200, '{"user":"u","roles":["r"]}\n')
        self.check(self.ask("PUT", "users/u", '{"user":"u","password":"q"}'), 200, '{"user":"u","roles":["r"]}\n')
        self.assertNotEqual(json.loads(self.stored("/2/users/u"))["password"], before)

    def test_refusals(self) -> None:
        """What etcd refuses, in its words."""
        self.tell("PUT", "users/u", '{"user":"u","password":"p","roles":["r"]}')
        for name, body, status, text in (
            ("u", "", 400, "Invalid JSON in request body."),
            ("u", "[]", 400, "Invalid JSON in request body."),
            ("u", "null", 400, "User JSON name does not match the name in the URL"),
            ("x", '{"user":"u"}', 400, "User JSON name does not match the name in the URL"),
            ("x", '{"user":"x"}', 400, "auth: Cannot create user x with an empty password"),
            ("x", '{"user":"x","roles":["r"]}', 400, "auth: Cannot create user x with an empty password"),
            ("x", '{"user":"x","grant":["r"]}', 404, "auth: User x does not exist."),
            ("u", '{"user":"u","grant":["x"],"roles":["y"]}', 400, "User JSON contains both roles and grant/revoke"),
            ("u", '{"user":"u","password":"q","roles":["y"]}', 409, "auth: User u already exists."),
            ("u", '{"user":"u","grant":["r"]}', 409, "auth: Granting duplicate role r for user u"),
            ("u", '{"user":"u","revoke":["x"]}', 409, "auth: Revoking ungranted role x for user u"),
            ("u", '{"user":"u"}', 400, "auth: User not updated. Use grant/revoke/password to update the user."),
        ):
            with self.subTest(body=body):
                self.refused(self.ask("PUT", f"users/{name}", body), status, text)
        self.assertEqual(json.loads(self.stored("/2/users/u"))["roles"], ["r"])

    def test_removing(self) -> None:
        """A user goes once."""
        self.tell("PUT", "users/u", '{"user":"u","password":"p"}')
        self.check(self.ask("DELETE", "users/u"), 200, "")
        self.refused(self.ask("DELETE", "users/u"), 404, "auth: User u does not exist")
        self.refused(self.ask("GET", "users/u"), 404, "auth: User u does not exist.")

    def test_roles_that_are_gone(self) -> None:
        """In a list they are passed over; a single user with one is not shown, as in etcd."""
        self.tell("PUT", "users/u", '{"user":"u","password":"p","roles":["r","root",""]}')
        self.check(self.ask("GET", "users"), 200, f'{{"users":[{{"user":"u","roles":[{_ROOT_ROLE}]}}]}}\n')
        self.refused(self.ask("GET", "users/u"), 404, "auth: Role r does not exist.")

    def test_names(self) -> None:
        """Any text is a name; what is no UTF-8 in the path is none of a body's."""
        for path, name in (("a b", "a b"), ("_h", "_h"), ("x/", "x"), ("\ufffd", "\ufffd"), ("\u00fc", "\u00fc")):
            body = json.dumps({"user": name, "password": "p"})
            self.assertEqual(self.ask("PUT", f"users/{path}", body).status, 201, path)
            self.assertEqual(self.ask("GET", f"users/{path}").status, 200, path)
        self.assertEqual(self.ask("PUT", "users/\udcff", b'{"user":"\xff","password":"p"}').status, 400)
        self.refused(self.ask("GET", "users/<\udcff>"), 404, "auth: User \\u003c\\ufffd\\u003e does not exist.")
        self.assertEqual(self.ask("DELETE", "users/\udcff").status, 404)

    def test_long_answers(self) -> None:
        """What Go sends in chunks comes in chunks."""
        for length, measured in ((1900, True), (2100, False)):
            name = "n" * length
            for answer in (
                self.ask("GET", f"users/{name}"),
                self.ask("PUT", f"users/{name}", json.dumps({"user": name, "password": "p"})),
            ):
                self.assertIs(answer.measured, measured)

    def test_a_user_that_is_none(self) -> None:
        """Rubbish in the store is an error of the member, and logged."""
        self.member.directory.set("/2/users/u", False, "rubbish")
        for path in ("users", "users/u"):
            self.refused(self.ask("GET", path), 500, "Internal Server Error")
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)


class RoleTests(AuthCase):
    def test_life_of_a_role(self) -> None:
        """It is made, granted permissions, shown, and removed."""
        empty = '{"role":"r","permissions":{"kv":{"read":null,"write":null}}}\n'
        self.check(self.ask("PUT", "roles/r", '{"role":"r"}'), 201, empty)
        self.check(self.ask("GET", "roles/r"), 200, empty)
        granted = '{"role":"r","permissions":{"kv":{"read":["/a","/b*"],"write":[]}}}'
        self.check(self.ask("PUT", "roles/r", '{"role":"r","grant":{"kv":{"read":["/b*","/a"]}}}'), 200, f"{granted}\n")
        self.assertEqual(self.stored("/2/roles/r"), granted)
        self.check(self.ask("GET", "roles"), 200, f'{{"roles":[{granted},{_ROOT_ROLE}]}}\n')
        self.check(
            self.ask("PUT", "roles/r", '{"role":"r","revoke":{"kv":{"read":["/a"]}}}'),
            *(200, granted.replace('"/a",', "") + "\n"),
        )
        self.check(self.ask("DELETE", "roles/r"), 200, "")
        self.refused(self.ask("GET", "roles/r"), 404, "auth: Role r does not exist.")
        self.check(self.ask("GET", "roles"), 200, f'{{"roles":[{_ROOT_ROLE}]}}\n')

    def test_refusals(self) -> None:
        """What etcd refuses, in its words; the role root is not to be touched."""
        self.tell("PUT", "roles/r", '{"role":"r","permissions":{"kv":{"read":["/a"]}}}')
        for name, body, status, text in (
            ("r", "{", 400, "Invalid JSON in request body."),
            ("r", '{"role":"q"}', 400, "Role JSON name does not match the name in the URL"),
            ("r", '{"role":"r"}', 409, "auth: Role r already exists."),
            ("r", '{"role":"r","grant":{"kv":{"read":["/a"]}}}', 409, "auth: Granting duplicate read permission /a"),
            (
                *("r", '{"role":"r","permissions":{"kv":{"read":["/b"]}},"grant":{"kv":{"read":["/c"]}}}', 400),
                "Role JSON contains both permissions and grant/revoke",
            ),
            (
                *("r", '{"role":"r","revoke":{"kv":{"write":["/b"]}},"grant":{"kv":{"write":["/b"]}}}', 200),
                None,  # a list that was missing is an empty one then
            ),
            (
                *("r", '{"role":"r","revoke":{"kv":{"write":["/b"]}}}', 400),
                "auth: Role not updated. Use grant/revoke to update the role.",
            ),
            ("q", '{"role":"q","revoke":{"kv":{"read":["/c"]}}}', 404, "auth: Role q does not exist."),
            ("root", '{"role":"root"}', 403, "auth: Cannot modify role root: is root role."),
            (
                "root",
                '{"role":"root","grant":{"kv":{"read":["/"]}}}',
                403,
                "auth: Cannot modify role root: is root role.",
            ),
        ):
            with self.subTest(body=body):
                answer = self.ask("PUT", f"roles/{name}", body)
                if text is None:
                    self.assertEqual(answer.status, status)
                else:
                    self.refused(answer, status, text)
        self.refused(self.ask("DELETE", "roles/root"), 403, "auth: Cannot modify role root: is root role.")
        self.refused(self.ask("DELETE", "roles/q"), 404, "auth: Role q doesn't exist.")


class TroubleTests(AuthCase):
    def test_no_leader(self) -> None:
        """What cannot be carried out is an internal error, and nothing has changed."""
        self.tell("PUT", "users/root", '{"user":"root","password":"root"}')
        self.member.failing = RequestTimeoutError()
        for method, path, body in (
            ("PUT", "enable", ""),
            ("PUT", "users/u", '{"user":"u","password":"p"}'),
            ("PUT", "users/u", '{"user":"u","password":"p","roles":["r"]}'),
            ("PUT", "users/root", '{"user":"root","grant":["x"]}'),
            ("DELETE", "users/root", ""),
            ("PUT", "roles/r", '{"role":"r"}'),
            ("PUT", "roles/r", '{"role":"r","grant":{"kv":{"read":["/"]}}}'),
            ("DELETE", "roles/r", ""),
        ):
            self.refused(self.ask(method, path, body), 500, "Internal Server Error")
        self.assertEqual(self.ask("GET", "users/root").status, 200)
        self.member.failing = None
        self.tell("PUT", "enable")

    def test_what_the_store_refuses(self) -> None:
        """Errors of the v2 store are shown as such."""
        self.member.directory.set("/2", False, "a file in the way")
        for path, body in (
            ("users/u", '{"user":"u","password":"p"}'),
            ("users/u", '{"user":"u","password":"p","roles":["r"]}'),
            ("roles/r", '{"role":"r"}'),
        ):
            answer = self.ask("PUT", path, body)
            self.assertEqual(answer.status, 400)
            self.assertEqual(answer.body, b'{"errorCode":104,"message":"Not a directory","cause":"/2","index":1}\n')
            self.assertEqual([*answer.fields.pairs], [_JSON, _CLUSTER, (b"X-Etcd-Index", b"1")])
            answer = self.ask("DELETE", path)
            self.assertEqual(answer.status, 400)

    def test_two_at_once_make_one_user(self) -> None:
        """Of two who make a user at the same time one is told that it is there."""
        self.tell("PUT", "roles/r", '{"role":"r"}')
        self.member.held = []
        body = '{"user":"u","password":"p"}'
        first, second = self.send("PUT", "users/u", body), self.send("PUT", "users/u", body)
        self.assertEqual((first.answers, second.answers), ([], []))
        self.member.release()
        self.check(first.answers[0], 201, '{"user":"u","roles":null}\n')
        self.refused(second.answers[0], 409, "auth: User u already exists.")

    def test_a_client_that_goes_away(self) -> None:
        """What it began is brought to its end, and nobody is answered."""
        self.tell("PUT", "roles/r", '{"role":"r"}')
        self.threads.held = []
        outlet = self.send("PUT", "users/u", '{"user":"u","password":"p"}')
        assert self.left is not None
        self.left()
        self.threads.release()
        self.assertEqual(outlet.answers, [])
        self.assertEqual(self.ask("GET", "users/u").status, 200)

    def test_a_password_keeps_nobody_waiting(self) -> None:
        """While one is hashed or checked others are answered."""
        self.tell("PUT", "users/root", '{"user":"root","password":"root"}')
        self.tell("PUT", "enable")
        self.threads.held = []
        slow = self.send("GET", "users", user="root")
        self.assertEqual(slow.answers, [])
        self.check(self.ask("GET", "enable"), 200, '{"enabled":true}\n')
        self.threads.release()
        self.assertEqual(slow.answers[0].status, 200)

    def test_an_outlet_that_fails(self) -> None:
        """It is logged, and nothing more."""

        class Broken(RecordingOutlet):
            def respond(self, answer: Answer) -> None:
                raise OSError("broken")

        self.auth.serve(V2Request("GET", "/v2/auth/enable", "", (), b"", PEER), Broken())
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)


class ReadingTests(AuthCase):
    def test_changes_are_made_of_the_newest_state(self) -> None:
        """A change of a user waits until this member knows of all writes that were acknowledged."""
        self.tell("PUT", "users/u", '{"user":"u","password":"p"}')
        waiting: Deferred[None] = Deferred()
        self.member.when_readable = lambda ready, fail: waiting.addCallback(lambda _: ready())  # type: ignore[method-assign]
        outlet = self.send("PUT", "users/u", '{"user":"u","grant":["b"]}')
        self.member.directory.set("/2/users/u", False, '{"user":"u","password":"other","roles":["a"]}')
        self.assertEqual(outlet.answers, [])
        waiting.callback(None)
        self.check(outlet.answers[0], 200, '{"user":"u","roles":["a","b"]}\n')
