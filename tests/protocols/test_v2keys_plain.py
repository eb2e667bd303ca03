"""A PUT of a value and nothing else takes a short way: what is proposed and answered is what the general way would."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tests.protocols.httpfakes import PEER, RecordingOutlet
from tests.protocols.test_v2keys import FORM, KeysCase
from tests.protocols.v2keysmember import KeysMember
from tests.protocols.v2tree import QUICK, Threads
from twistedkv.errors import RequestTimeoutError
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.protocols.goform import FORM_TYPE, MAX_BODY_BYTES, FormError, FormReader
from twistedkv.protocols.v2access import V2Gate
from twistedkv.protocols.v2json import KEYS_PREFIX
from twistedkv.protocols.v2keys import KeysEndpoint
from twistedkv.protocols.v2passwords import Passwords
from twistedkv.protocols.v2requests import NAMES, parse_key_request
from twistedkv.protocols.v2words import V2Request
from twistedkv.storage.directory import Directory
from twistedkv.v2auth import GUEST_ROLE
from twistedkv.v2errors import V2Error
from twistedkv.v2request import PlainSet, carry_out
from twistedkv.v2watch import V2Hub

READER = FormReader(NAMES)
KEYS = st.binary(max_size=12).map(lambda name: f"/{name.decode('utf-8', 'surrogateescape')}")
PIECES = (
    b"&",
    b";",
    b"%",
    b"+",
    b"=",
    b"%41",
    b"x",
    b"\xff",
    b"\xc3\xa9",
    b"value=",
    b"&ttl=5",
    b"&dir=true",
    b"&prevExist=",
)


class PlainPutTests(KeysCase):
    """While everybody may use all keys."""

    def setUp(self) -> None:
        super().setUp()
        self.judge.open = True

    def ways(self, method: str, key: str, query: str, kind: str, body: bytes) -> tuple[KeysMember, KeysMember]:
        """A member that was asked, and one that was asked by way of a form and of what is said in it."""
        short, general = KeysMember(self.clock), KeysMember(self.clock)
        fields = (("content-type", kind),) if kind else ()
        KeysEndpoint(short, self.judge).serve(
            V2Request(method, f"/v2/keys{key}", query, fields, body, PEER), RecordingOutlet()
        )
        try:
            form = READER.read(method, kind, body, query.encode("latin-1"))
            asked = parse_key_request(method, KEYS_PREFIX + key.rstrip("/"), form)
        except (FormError, V2Error):
            pass
        else:
            KeysEndpoint(general, self.judge).carry_out(asked, RecordingOutlet())
        return short, general

    def assert_same(self, method: str, key: str, query: str, kind: str, body: bytes) -> tuple[str, str] | None:
        """Both ways propose the same bytes, if any; what they are said to be, which is what they say and all of it."""
        short, general = self.ways(method, key, query, kind, body)
        self.assertEqual(short.encoded, general.encoded)
        if not short.plain or short.plain[0] is None:
            return None
        (request,), (plain,) = short.proposed, short.plain
        self.assertEqual(plain, tuple(each.decode("utf-8", "surrogateescape") for each in (request.Path, request.Val)))
        self.assertEqual(request, Request(Method="PUT", Path=request.Path, Val=request.Val or None))
        return plain

    @given(KEYS | st.sampled_from(("", "/", "/a", "/a/", "/d/a//")), st.binary(max_size=200))
    @settings(max_examples=60, deadline=None)
    def test_any_value_of_any_key(self, key: str, value: bytes) -> None:
        """What is proposed is byte for byte what the general way proposes, and is known to be plain if it is."""
        plain = self.assert_same("PUT", key, "", FORM_TYPE, b"value=" + value)
        if not set(value) & set(b"&;%+"):
            self.assertEqual(
                plain, (KEYS_PREFIX + key.rstrip("/"), value.decode("utf-8", "surrogateescape")), (key, value)
            )

    @given(
        st.sampled_from(("PUT", "PUT", "PUT", "POST")),
        st.sampled_from(("", "", "", "ttl=5", "value=q", "x", "dir=true", "prevValue=1", "prevExist=x", "%zz")),
        st.sampled_from((b"value=", b"value=", b"value", b"ttl=", b"")),
        st.lists(st.sampled_from(PIECES), max_size=5),
    )
    @settings(max_examples=100, deadline=None)
    def test_any_request(self, method: str, query: str, start: bytes, pieces: list[bytes]) -> None:
        """What is proposed is what the general way proposes, or nothing where that refuses."""
        body = start + b"".join(pieces)
        plain = self.assert_same(method, "/a", query, FORM_TYPE, body)
        if plain is not None:
            self.assertEqual(
                (method, query, body), ("PUT", "", b"value=" + plain[1].encode("utf-8", "surrogateescape"))
            )

    def test_what_is_plain(self) -> None:
        """A PUT of a form of one value that is written as it is, the empty one included, to a target without query."""
        long = b"value=" + b"x" * (MAX_BODY_BYTES - len(b"value="))
        for method, key, query, kind, body, plain in (
            ("PUT", "/a", "", FORM_TYPE, b"value=1", ("/1/a", "1")),
            ("PUT", "/a/", "", FORM_TYPE, b"value=", ("/1/a", "")),
            ("PUT", "", "", FORM_TYPE, b"value=a=b", ("/1", "a=b")),
            ("PUT", "/\udcff\xe9", "", FORM_TYPE, b"value=\xff\xc3\xa9", ("/1/\udcff\xe9", "\udcff\xe9")),
            ("PUT", "/a", "", f"{FORM_TYPE}; charset=utf-8", b"value=1", ("/1/a", "1")),
            ("PUT", "/a", "", FORM_TYPE, long, ("/1/a", long[6:].decode())),
            ("PUT", "/a", "", FORM_TYPE, long + b"x", None),
            ("PUT", "/a", "", FORM_TYPE, b"", None),
            ("PUT", "/a", "", FORM_TYPE, b"value", None),
            ("PUT", "/a", "", FORM_TYPE, b"values=1", None),
            ("PUT", "/a", "", FORM_TYPE, b"ttl=5", None),
            ("PUT", "/a", "", FORM_TYPE, b"value=1&ttl=5", None),
            ("PUT", "/a", "", FORM_TYPE, b"value=1;dir=true", None),
            ("PUT", "/a", "", FORM_TYPE, b"value=a%20b", None),
            ("PUT", "/a", "", FORM_TYPE, b"value=a+b", None),
            ("PUT", "/a", "", FORM_TYPE, b"value=%zz", None),
            ("PUT", "/a", "ttl=5", FORM_TYPE, b"value=1", None),
            ("PUT", "/a", "prevExist=true", FORM_TYPE, b"value=1", None),
            ("PUT", "/a", "x", FORM_TYPE, b"value=1", None),
            ("PUT", "/a", "%zz", FORM_TYPE, b"value=1", None),
            ("PUT", "/a", "", "", b"value=1", None),
            ("PUT", "/a", "", "text/plain", b"value=1", None),
            ("PUT", "/a", "", ";;", b"value=1", None),
            ("POST", "/a", "", FORM_TYPE, b"value=1", None),
            ("DELETE", "/a", "", FORM_TYPE, b"value=1", None),
            ("GET", "/a", "", FORM_TYPE, b"value=1", None),
            ("HEAD", "/a", "", FORM_TYPE, b"value=1", None),
        ):
            self.assertEqual(self.assert_same(method, key, query, kind, body), plain, (method, query, kind, body[:20]))

    def test_it_does_what_the_general_way_does(self) -> None:
        """The event, the tree and the refusals of what is said to be plain are those of the request that goes out."""
        trees = [Directory(V2Hub()), Directory(V2Hub())]
        for key, body in (
            ("/a", b"value=1"),
            ("/a/", b"value="),
            ("/d/\udcff", b"value=\xff\xc3\xa9"),
            ("/d", b"value=1"),
            ("/a/b", b"value=1"),
            ("", b"value=1"),
            ("/a", b"value=2"),
        ):
            member, _ = self.ways("PUT", key, "", FORM_TYPE, body)
            (plain,) = member.plain
            assert plain is not None
            outcomes: list[object] = []
            requests: list[Request | PlainSet] = [PlainSet(1, *plain), member.proposed[0]]
            for request, tree in zip(requests, trees, strict=True):
                try:
                    event = carry_out(request, tree)
                except V2Error as error:
                    outcomes.append((error.code, error.cause, error.index))
                else:
                    assert event is not None
                    outcomes.append((event.action, event.node, event.previous, event.etcd_index, event.refresh))
            self.assertEqual(*outcomes)
        self.assertEqual(*(tree.get("/", True, True).node for tree in trees))
        self.assertEqual(*(tree.counters.counts for tree in trees))
        self.assertEqual(trees[0].counters.counts["setsFail"], 3)

    def test_answers(self) -> None:
        """Status, fields and body are those of a PUT by query, be the file made, replaced or refused."""
        other = KeysEndpoint(KeysMember(self.clock), self.judge)
        for key, value in (("/a", "1"), ("/a", "2"), ("/a", ""), ("/a/b", "3"), ("", "4"), ("/d/e", '<">')):
            answer = self.answer("PUT", key, f"value={value}")
            outlet = RecordingOutlet()
            other.serve(V2Request("PUT", f"/v2/keys{key}", f"value={value}", (), b"", PEER), outlet)
            (expected,) = outlet.answers
            self.assertEqual(
                (answer.status, answer.body, answer.fields.block, answer.measured),
                (expected.status, expected.body, expected.fields.block, expected.measured),
            )
        self.assertNotIn(None, self.member.plain)

    def test_failures_are_told(self) -> None:
        """As those of any write, and after whatever time they take; a client that goes cancels nothing."""
        self.member.failing = RequestTimeoutError()
        answer = self.answer("PUT", "/a", "value=1")
        self.assertEqual((answer.status, b"request timed out" in answer.body), (500, True))
        self.member.failing, self.member.held = None, []
        outlet, cancel = self.send("PUT", "/a", "value=1")
        self.assertEqual((outlet.answers, cancel), ([], None))
        self.member.release()
        self.assertEqual([answer.status for answer in outlet.answers], [201])

    def test_one_head_asks_for_many(self) -> None:
        """What was made of a head serves plain bodies and others, one after the other."""
        asked = self.keys.asked("PUT", "/v2/keys/a", "", FORM)
        outlet = RecordingOutlet()
        for body in (b"value=1", b"value=2&ttl=5", b"value=%zz", b"value=3", b"", b"value=4"):
            self.assertIsNone(asked.serve(body, PEER, outlet))
        self.assertEqual([answer.status for answer in outlet.answers], [201, 200, 400, 200, 200, 200])
        self.assertEqual([request.Val for request in self.member.proposed], [b"1", b"2", b"3", b"", b"4"])
        self.assertEqual([request.HasField("Expiration") for request in self.member.proposed].index(True), 1)
        self.judge.open = self.judge.verdict = False
        asked.serve(b"value=5", PEER, outlet)
        self.assertEqual((outlet.answers[-1].status, len(self.member.proposed)), (401, 5))


class PlainPutPermissionTests(KeysCase):
    """While not everybody may."""

    def test_a_plain_put_is_judged(self) -> None:
        """Once, like any other request, unless access is open to all, which is asked once."""
        targets = ("/a", "/a/", "", "/d/\udcff")
        for verdict, statuses in ((False, [401] * 4), (True, [201, 200, 400, 201])):
            self.judge.verdict = verdict
            found = [self.answer("PUT", target, "value=1").status for target in targets]
            self.assertEqual(found, statuses)
            self.assertEqual(self.judge.asked, [("PUT", target, False) for target in targets])
            self.assertEqual(
                self.judge.requests,
                [V2Request("PUT", f"/v2/keys{target}", "", FORM, b"value=1", PEER) for target in targets],
            )
            self.assertEqual((self.judge.looks, len(self.member.proposed)), (4, 4 * verdict))
            self.judge.asked.clear()
            self.judge.requests.clear()
            self.judge.looks = 0
        self.judge.open = True
        self.answer("PUT", "/a", "value=1")
        self.assertEqual((self.judge.looks, self.judge.asked, len(self.member.proposed)), (1, [], 5))

    def test_a_plain_put_counts_one_look_at_whether_checks_are_made(self) -> None:
        """In the statistics of the store, as any other does, be they made or not."""
        gate = V2Gate(self.member, Passwords(Threads(), QUICK), False)
        self.keys = KeysEndpoint(self.member, gate)
        tree, read = self.member.directory, self.member.directory.counters.counts
        tree.set("/2/roles/guest", False, GUEST_ROLE.encoded())
        for enabled, looks in ((None, {"getsFail": 1}), ("false", {"getsSuccess": 1}), ("true", {"getsSuccess": 2})):
            if enabled is not None:
                tree.set("/2/enabled", False, enabled)
            for body in ("value=1", "value=%31"):  # the second one is not plain; the guest's role is looked at as well
                before = dict(read)
                self.assertIn(self.answer("PUT", "/a", body).status, (200, 201))
                counted = {name: read[name] - before[name] for name in read if read[name] != before[name]}
                self.assertEqual(counted, {**looks, "setsSuccess": 1}, (enabled, body))

    def test_a_plain_put_may_wait_for_its_verdict(self) -> None:
        """And is then carried out by the general way, or is not; who goes meanwhile is not waited for."""
        for allowed, status in ((True, 201), (False, 401)):
            self.judge.verdict = verdict = Deferred[bool]()
            outlet, _ = self.send("PUT", f"/{status}", "value=1")
            self.assertEqual((outlet.answers, self.member.proposed), ([], []))
            verdict.callback(allowed)
            self.assertEqual([answer.status for answer in outlet.answers], [status])
            self.member.proposed.clear()
        self.judge.verdict = verdict = Deferred[bool]()
        outlet, cancel = self.send("PUT", "/a", "value=1")
        cancel()
        self.assertEqual((verdict.called, outlet.answers, self.member.proposed), (True, [], []))
