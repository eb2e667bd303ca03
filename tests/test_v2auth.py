"""Users, roles and permissions of the v2 API: how they change, what they allow, how they are written."""

from __future__ import annotations

import json
from http import HTTPStatus

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv import v2auth
from twistedkv.storage.directory import Directory
from twistedkv.v2auth import ROOT_ROLE, Permissions, Role, User, V2AuthError
from twistedkv.v2authjson import go_string, parsed
from twistedkv.v2errors import V2Code, V2Error
from twistedkv.v2watch import V2Hub

_NAMES = st.lists(st.sampled_from(["", "a", "b", "c", "root"]), max_size=4).map(tuple)
_TEXT = st.text(max_size=12)
_PATTERNS = st.none() | st.lists(_TEXT, max_size=3).map(tuple)
_PERMISSIONS = st.builds(Permissions, _PATTERNS, _PATTERNS)


class PermissionTests(SynchronousTestCase):
    def test_a_pattern_is_a_key_or_a_prefix(self) -> None:
        """Only a star at the end matches more than the key itself, and only such a pattern reaches all below a key."""
        for pattern, key, alone, recursive in (
            ("/foo", "/foo", True, False),
            ("/foo", "/foo/", False, False),
            ("/foo", "/foobar", False, False),
            ("/foo*", "/foo", True, True),
            ("/foo*", "/foobar", True, True),
            ("/foo*", "/fo", False, False),
            ("/foo/*", "/foo", False, False),
            ("/foo/*", "/foo/", True, True),
            ("/foo/*", "/foo/bar/x", True, True),
            ("/*", "", False, False),
            ("/*", "/", True, True),
            ("*", "", True, True),
            ("/f*o", "/f*o", True, False),
            ("/f*o", "/fxo", False, False),
            ("", "", False, False),
            ("", "/", False, False),
        ):
            with self.subTest(pattern=pattern, key=key):
                readable = Permissions(read=("/other", pattern))
                self.assertIs(readable.allow(key, write=False, recursive=False), alone)
                self.assertIs(readable.allow(key, write=False, recursive=True), recursive)
                self.assertFalse(readable.allow(key, write=True, recursive=False))
                self.assertIs(Permissions(write=(pattern,)).allow(key, write=True, recursive=True), recursive)

    def test_nothing_is_allowed_without_patterns(self) -> None:
        """A role that was just made allows nothing."""
        for permissions in (Permissions(), Permissions((), ())):
            self.assertFalse(permissions.allow("/foo", write=False, recursive=False))
            self.assertTrue(permissions.is_empty)
        self.assertFalse(Permissions(write=("x",)).is_empty)

    def test_granted_and_revoked_are_sorted(self) -> None:
        """Patterns come out in order, whatever order they were given in, and never as a list that is missing."""
        granted = Permissions(("/b", "/a")).granted(Permissions(("/c", "/0")))
        self.assertEqual(granted, Permissions(("/0", "/a", "/b", "/c"), ()))
        self.assertEqual(granted.revoked(Permissions(("/a", "/nowhere"))), Permissions(("/0", "/b", "/c"), ()))
        self.assertEqual(granted.granted(None), granted)
        self.assertEqual(Permissions(None).revoked(None), Permissions(None))

    def test_granting_twice_is_refused(self) -> None:
        """A pattern that is there, or is given twice, is refused by its name."""
        for had, more, text in (
            (Permissions(("/a",)), Permissions(("/a",)), "auth: Granting duplicate read permission /a"),
            (Permissions(), Permissions((), ("/b", "/b")), "auth: Granting duplicate write permission /b"),
        ):
            error = self.assertRaises(V2AuthError, had.granted, more)
            self.assertEqual((error.status, error.text), (HTTPStatus.CONFLICT, text))

    @given(_PERMISSIONS, st.text(max_size=6), st.booleans())
    def test_what_is_revoked_is_not_allowed(self, permissions: Permissions, key: str, write: bool) -> None:
        """After all patterns are revoked nothing is allowed, and granting them again allows the same as before."""
        nothing = permissions.revoked(permissions)
        self.assertTrue(nothing.is_empty)
        distinct = Permissions(tuple(set(permissions.read or ())) or None, tuple(set(permissions.write or ())) or None)
        for recursive in (False, True):
            self.assertFalse(nothing.allow(key, write, recursive))
            self.assertEqual(
                nothing.granted(distinct).allow(key, write, recursive), permissions.allow(key, write, recursive)
            )


class UserTests(SynchronousTestCase):
    def test_grants_come_before_revokes(self) -> None:
        """A role may be granted and revoked in one request; what is left is sorted."""
        user = User("u", "hash", ("b", "a"))
        self.assertEqual(user.merged(User("u", grant=("c",), revoke=("a",)), ""), User("u", "hash", ("b", "c")))
        self.assertEqual(user.merged(User("u", grant=("x",), revoke=("x",)), "new"), User("u", "new", ("a", "b")))

    def test_what_is_refused(self) -> None:
        """Roles that a user has are not granted, those that it has not are not revoked, and nothing is no change."""
        user = User("u", "hash", ("a",))
        for change, status, text in (
            (User("u", grant=("a",)), 409, "auth: Granting duplicate role a for user u"),
            (User("u", grant=("b", "b")), 409, "auth: Granting duplicate role b for user u"),
            (User("u", revoke=("b",)), 409, "auth: Revoking ungranted role b for user u"),
            (User("u"), 400, "auth: User not updated. Use grant/revoke/password to update the user."),
            (
                *(User("u", grant=("b",), revoke=("b",)), 400),
                "auth: User not updated. Use grant/revoke/password to update the user.",
            ),
        ):
            with self.subTest(change=change):
                error = self.assertRaises(V2AuthError, user.merged, change, "")
                self.assertEqual((error.status, error.text), (status, text))

    def test_a_missing_list_becomes_an_empty_one(self) -> None:
        """A user who was made without roles is changed by a request that changes nothing, once, as in etcd."""
        once = User("u", "hash").merged(User("u"), "")
        self.assertEqual(once, User("u", "hash", ()))
        self.assertRaises(V2AuthError, once.merged, User("u"), "")

    def test_root_has_the_role_root(self) -> None:
        """The user root has the role root even if the store does not say so; nobody else gets it that way."""
        self.assertEqual(User("root").rooted().roles, ("root",))
        self.assertEqual(User("root", roles=("a",)).rooted().roles, ("a", "root"))
        self.assertEqual(User("root", roles=("root", "a")).rooted().roles, ("root", "a"))
        self.assertIsNone(User("bob").rooted().roles)

    def test_json(self) -> None:
        """The store gets the hash, and a client the roles."""
        user = User("u", "hash", ("a",), revoke=("b",))
        self.assertEqual(user.encoded(), '{"user":"u","password":"hash","roles":["a"],"revoke":["b"]}')
        self.assertEqual(User("u", grant=()).encoded(), '{"user":"u","roles":null}')
        self.assertEqual(user.with_password("").encoded(), '{"user":"u","roles":["a"],"revoke":["b"]}')
        self.assertEqual(user.shown_with([]), '{"user":"u"}')
        role = '{"role":"root","permissions":{"kv":{"read":["/*"],"write":["/*"]}}}'
        self.assertEqual(user.shown_with([ROOT_ROLE]), f'{{"user":"u","roles":[{role}]}}')

    def test_bodies(self) -> None:
        """A body is read as Go reads it into etcd's struct."""
        for body, expected in (
            (b"null", User("")),
            (b"{}", User("")),
            (b' \n{"user":"j","x":[1,{"y":null}],"password":"p"} trailing', User("j", "p")),
            (b'{"USER":"j","Password":"p"}', User("j", "p")),
            ('{"u\u017fer":"j"}'.encode(), User("j")),  # the long s is an s for Go
            ('{"pa\u00dfword":"p"}'.encode(), User("")),  # but a sharp s is no two of them
            (b'{"user":"j","user":"k"}', User("k")),
            (b'{"user":"j","user":null}', User("j")),
            (b'{"user":"j","roles":null,"password":null}', User("j")),
            (b'{"user":"j","roles":[],"grant":["a",null],"revoke":["b"]}', User("j", "", (), ("a", ""), ("b",))),
            (b'{"user":"\xff\xfe\\ud800"}', User("\ufffd\ufffd\ufffd")),
            (b'{"user":"\\ud83d\\ude00"}', User("\U0001f600")),
        ):
            with self.subTest(body=body):
                self.assertEqual(User.decoded(body), expected)

    def test_bodies_that_are_none(self) -> None:
        """What is no JSON, or of another kind than it should be, is refused."""
        for body in (
            *(b"", b" ", b"{", b"[]", b'"x"', b"1", b"NaN", b'{"user":1}', b'{"user":true}', b'{"user":["j"]}'),
            *(
                b'{"roles":"x"}',
                b'{"roles":[1]}',
                b'{"grant":{}}',
                b'{"user":"a\nb"}',
                b"{'user':1}",
                b'{"x":Infinity}',
            ),
            b'{"x":' + b"[" * 100_000,
        ):
            with self.subTest(body=body[:40]):
                self.assertRaises(ValueError, User.decoded, body)


class RoleTests(SynchronousTestCase):
    def test_merging(self) -> None:
        """Grants come before revokes, and a request without effect is refused."""
        role = Role("r", Permissions(("/a",), ("/w",)))
        change = Role("r", Permissions(), Permissions(("/b",)), Permissions(("/a",), ("/nowhere",)))
        self.assertEqual(role.merged(change), Role("r", Permissions(("/b",), ("/w",))))
        for grant, revoke in ((Permissions(), None), (None, Permissions(("/x",))), (None, None)):
            error = self.assertRaises(V2AuthError, role.merged, Role("r", Permissions(), grant, revoke))
            self.assertEqual(error.text, "auth: Role not updated. Use grant/revoke to update the role.")
            self.assertEqual(error.status, HTTPStatus.BAD_REQUEST)

    def test_what_a_request_asked_for_goes(self) -> None:
        """A role keeps an empty grant it was made with until it is changed, as in etcd."""
        made = Role.decoded(b'{"role":"e","permissions":{"kv":{"read":["b","a"]}},"grant":{}}')
        self.assertFalse(made.is_change)
        self.assertEqual(
            made.encoded(),
            '{"role":"e","permissions":{"kv":{"read":["b","a"],"write":null}},"grant":{"kv":{"read":null,"write":null}}}',
        )
        change = Role.decoded(b'{"role":"e","revoke":{"kv":{"read":["zz"]}}}')
        self.assertTrue(change.is_change)
        merged = made.merged(change)
        self.assertEqual(merged.encoded(), '{"role":"e","permissions":{"kv":{"read":["a","b"],"write":[]}}}')

    def test_root_may_do_everything(self) -> None:
        """Also what its patterns do not match: the root of the keys without its slash."""
        self.assertTrue(ROOT_ROLE.allows("", write=True, recursive=True))
        self.assertFalse(Role("guest", ROOT_ROLE.permissions).allows("", write=True, recursive=True))
        self.assertTrue(Role("guest", ROOT_ROLE.permissions).allows("/x", write=True, recursive=True))

    def test_bodies(self) -> None:
        """Values of one name in different case are put together, as Go does."""
        for body, expected in (
            (b'{"role":"k","permissions":null,"grant":null}', Role("k", Permissions())),
            (b'{"role":"k","permissions":{"kv":{}},"revoke":{}}', Role("k", Permissions(), None, Permissions())),
            (
                b'{"permissions":{"kv":{"read":["f","a","a"]},"KV":{"Write":["q"]}}}',
                Role("", Permissions(("f", "a", "a"), ("q",))),
            ),
            (
                b'{"grant":{"kv":{"read":["x"]}},"Grant":{"kv":{"write":[]}}}',
                Role("", Permissions(), Permissions(("x",), ())),
            ),
            (b'{"grant":{"kv":{"read":["x"]}},"grant":null}', Role("", Permissions())),
        ):
            with self.subTest(body=body):
                self.assertEqual(Role.decoded(body), expected)
        for body in (
            b'{"permissions":[]}',
            b'{"permissions":{"kv":[]}}',
            b'{"grant":{"kv":{"read":"x"}}}',
            b'{"role":{}}',
        ):
            self.assertRaises(ValueError, Role.decoded, body)

    @given(_TEXT, _PERMISSIONS, st.none() | _PERMISSIONS, st.none() | _PERMISSIONS)
    def test_what_was_written_is_read(
        self, name: str, permissions: Permissions, grant: Permissions | None, revoke: Permissions | None
    ) -> None:
        """A role comes out of the store as it went in."""
        role = Role(name, permissions, grant, revoke)
        self.assertEqual(Role.decoded(role.encoded().encode()), role)

    @given(_TEXT, _TEXT, st.none() | _NAMES)
    def test_a_written_user_is_read(self, name: str, password: str, roles: tuple[str, ...] | None) -> None:
        """So does a user."""
        user = User(name, password, roles)
        self.assertEqual(User.decoded(user.encoded().encode()), user)


class GoStringTests(SynchronousTestCase):
    def test_escapes(self) -> None:
        """Texts are escaped as Go does it, those of HTML and bytes that are no UTF-8 included."""
        for text, expected in (
            ("<b>&", '"\\u003cb\\u003e\\u0026"'),
            ('"\\\x01\x7f\u00e9\u2028', '"\\"\\\\\\u0001\x7f\u00e9\\u2028"'),
            ("\n\r\t\b\f", '"\\n\\r\\t\\u0008\\u000c"'),
            ("a\udcff\\udcff\udcfe", '"a\\ufffd\\\\udcff\\ufffd"'),
            ("\ufffd", '"\ufffd"'),
        ):
            self.assertEqual(go_string(text), expected)

    @given(st.text())
    def test_every_text_is_json(self, text: str) -> None:
        """Whatever text it is, it reads as itself."""
        self.assertEqual(json.loads(go_string(text)), text)
        self.assertEqual(parsed(go_string(text).encode()), text)


class StoredTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Directory(V2Hub())

    def put(self, path: str, value: str) -> None:
        """Have ``value`` in the store."""
        self.directory.set(path, False, value)

    def counted(self) -> tuple[int, int]:
        """The reads so far, those that found something first."""
        counts = self.directory.counters.counts
        return counts["getsSuccess"], counts["getsFail"]

    def test_off_until_it_says_true(self) -> None:
        """The checks are off where nobody has turned them on, and each look is counted as the read that etcd does."""
        self.assertFalse(v2auth.is_enabled(self.directory))
        self.assertEqual(self.counted(), (0, 1))
        for value, enabled in (("false", False), ("true", True), ("yes", False), ("", False)):
            self.put("/2/enabled", value)
            self.assertIs(v2auth.is_enabled(self.directory), enabled)
        self.assertEqual(self.counted(), (4, 1))

    def test_nobody_at_first(self) -> None:
        """There are no users, and no role but root."""
        self.assertEqual(v2auth.user_names(self.directory), [])
        self.assertEqual(v2auth.role_names(self.directory), ["root"])
        self.assertEqual(v2auth.stored_role(self.directory, "root"), ROOT_ROLE)

    def test_names_are_sorted_and_may_be_hidden(self) -> None:
        """Lists are in order, without names that begin with an underscore; those are found by name."""
        for name in ("z", "_h", "a"):
            self.put(f"/2/users/{name}", User(name, "hash").encoded())
            self.put(f"/2/roles/{name}", Role(name, Permissions()).encoded())
        self.assertEqual(v2auth.user_names(self.directory), ["a", "z"])
        self.assertEqual(v2auth.role_names(self.directory), ["a", "root", "z"])
        self.assertEqual(v2auth.stored_user(self.directory, "_h"), User("_h", "hash"))
        self.assertEqual(v2auth.stored_role(self.directory, "_h"), Role("_h", Permissions()))

    def test_the_stored_root(self) -> None:
        """Root is root even if somebody revoked the role."""
        self.put("/2/users/root", User("root", "hash", ()).encoded())
        self.assertEqual(v2auth.stored_user(self.directory, "root"), User("root", "hash", ("root",)))

    def test_who_is_not_there(self) -> None:
        """Names that lead elsewhere in the store find nobody."""
        self.put("/2/users/a", User("a").encoded())
        self.put("/2/enabled", "true")
        for name in ("b", "", ".", "..", "../enabled", "./a", "a/", "/a", "a/b"):
            error = self.assertRaises(V2AuthError, v2auth.stored_user, self.directory, name)
            self.assertEqual((error.status, error.text), (404, f"auth: User {name} does not exist."))
            error = self.assertRaises(V2AuthError, v2auth.stored_role, self.directory, name)
            self.assertEqual((error.status, error.text), (404, f"auth: Role {name} does not exist."))

    def test_what_is_none(self) -> None:
        """Rubbish in the store is found out when it is read."""
        self.put("/2/users/a", "rubbish")
        self.put("/2/roles/a", "[]")
        self.assertRaises(ValueError, v2auth.stored_user, self.directory, "a")
        self.assertRaises(ValueError, v2auth.stored_role, self.directory, "a")

    def test_a_file_in_the_way(self) -> None:
        """What the store says of that is not taken for nobody's being there."""
        self.put("/2", "x")
        for find in (v2auth.stored_user, v2auth.stored_role):
            error = self.assertRaises(V2Error, find, self.directory, "a")
            self.assertIs(error.code, V2Code.NOT_DIR)
        self.assertRaises(V2Error, v2auth.user_names, self.directory)

    def test_refusals(self) -> None:
        """What the changes are refused with, in etcd's words."""
        for error, status, text in (
            (v2auth.already_enabled(), 409, "already enabled"),
            (v2auth.already_disabled(), 409, "already disabled"),
            (v2auth.no_root_user(), 409, "No root user available, please create one"),
            (v2auth.root_is_needed(), 403, "Cannot delete root user while auth is enabled."),
            (v2auth.no_password("u"), 400, "Cannot create user u with an empty password"),
            (v2auth.user_exists("u"), 409, "User u already exists."),
            (v2auth.no_such_user("u"), 404, "User u does not exist"),
            (v2auth.role_exists("r"), 409, "Role r already exists."),
            (v2auth.no_such_role("r"), 404, "Role r doesn't exist."),
            (v2auth.role_is_root(), 403, "Cannot modify role root: is root role."),
        ):
            self.assertEqual((error.status, error.text), (status, f"auth: {text}"))
