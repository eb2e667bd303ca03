"""Requests for keys of the v2 API: parameters and their faults, answers, proposals, watches, permissions."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.httpfakes import PEER, RecordingOutlet
from tests.protocols.v2keysmember import KeysMember
from twistedkv.errors import RequestTimeoutError
from twistedkv.protocols.answers import Answer
from twistedkv.protocols.goform import FORM_TYPE
from twistedkv.protocols.v2keys import MAX_UNSENT_EVENTS, KeysEndpoint
from twistedkv.protocols.v2requests import expiration_ns
from twistedkv.protocols.v2site import V2Site
from twistedkv.protocols.v2words import OpenAccess, V2Request

NOW_S = 1_795_634_000.5
FORM = (("content-type", FORM_TYPE),)


class Judge(OpenAccess):
    """Access that a test decides on."""

    def __init__(self) -> None:
        self.open = False
        self.looks = 0  # whether it is
        self.verdict: bool | Deferred[bool] = True
        self.asked: list[tuple[str, str, bool]] = []
        self.requests: list[V2Request] = []

    def open_to_all(self) -> bool:
        self.looks += 1
        return self.open

    def may_use_key(self, request: V2Request, key: str, recursive: bool) -> Any:
        self.asked.append((request.method, key, recursive))
        self.requests.append(request)
        return self.verdict


class KeysCase(SynchronousTestCase):
    """A member, and requests to it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW_S
        self.member = KeysMember(self.clock)
        self.judge = Judge()
        self.keys = KeysEndpoint(self.member, self.judge)

    def send(self, method: str, target: str, body: str | None = None, outlet: RecordingOutlet | None = None) -> Any:
        """Serve one request; its outlet, and what is to be called when the client goes."""
        path, _, query = target.partition("?")
        fields = () if body is None else FORM
        request = V2Request(method, "/v2/keys" + path, query, fields, (body or "").encode("latin-1"), PEER)
        outlet = outlet or RecordingOutlet()
        return outlet, self.keys.serve(request, outlet)

    def answer(self, method: str, target: str, body: str | None = None) -> Answer:
        """The answer, which comes at once."""
        outlet, _ = self.send(method, target, body)
        answer: Answer
        (answer,) = outlet.answers
        return answer

    def body(self, method: str, target: str, body: str | None = None) -> Any:
        """Its body, parsed."""
        return json.loads(self.answer(method, target, body).body)

    def watch(self, target: str, outlet: RecordingOutlet | None = None) -> tuple[RecordingOutlet, Any]:
        """A watch that has begun to be answered."""
        outlet, cancel = self.send("GET", target, None, outlet)
        self.assertEqual((len(outlet.begun), outlet.answers), (1, []))
        return outlet, cancel


class AnswerTests(KeysCase):
    def test_a_write_and_a_read(self) -> None:
        """Status, header fields in etcd's spelling, and body."""
        answer = self.answer("PUT", "/foo", "value=bar")
        node = b'{"key":"/foo","value":"bar","modifiedIndex":1,"createdIndex":1}'
        self.assertEqual((answer.status, answer.body), (201, b'{"action":"set","node":%b}\n' % node))
        self.assertEqual(
            list(answer.fields.pairs),
            [
                (b"Content-Type", b"application/json"),
                (b"X-Etcd-Cluster-Id", b"abcdef"),
                (b"X-Etcd-Index", b"1"),
                (b"X-Raft-Index", b"101"),
                (b"X-Raft-Term", b"2"),
            ],
        )
        answer = self.answer("GET", "/foo")
        self.assertEqual((answer.status, answer.body), (200, b'{"action":"get","node":%b}\n' % node))
        self.assertEqual(self.answer("PUT", "/foo", "value=2").status, 200)
        self.member.term = 3
        self.assertIn((b"X-Raft-Term", b"3"), self.answer("HEAD", "/foo").fields.pairs)

    def test_a_refusal_has_the_index_of_the_store_only(self) -> None:
        """0 where the store was not asked."""
        self.answer("PUT", "/foo", "value=bar")
        for target, status, index in (("/nope", 404, b"1"), ("/foo?ttl=x", 400, b"0")):
            answer = self.answer("GET", target)
            self.assertEqual(answer.status, status)
            self.assertEqual(
                [value for name, value in answer.fields.pairs if name.startswith(b"X-")], [b"abcdef", index]
            )

    def test_paths_are_those_of_the_store_and_back(self) -> None:
        """A trailing slash is nothing, and bytes that are no UTF-8 stay what they are."""
        self.answer("PUT", "/d/\udcff/", "value=\xff%fe")
        (request,) = self.member.proposed
        self.assertEqual((request.Path, request.Val), (b"/1/d/\xff", b"\xff\xfe"))
        self.assertIn(b'"key":"/d/\\ufffd","value":"\\ufffd\\ufffd"', self.answer("GET", "/d/\udcff").body)
        self.assertEqual(self.body("GET", "/")["node"]["nodes"][0]["key"], "/d")
        self.assertEqual(self.body("GET", "")["node"]["nodes"][0]["key"], "/d")

    def test_methods_that_are_none_are_refused(self) -> None:
        """Whatever is wrong besides, and their names have a case."""
        for method in ("PATCH", "put", "TRACE"):
            answer = self.answer(method, "/foo?ttl=%zz")
            self.assertEqual((answer.status, answer.body), (405, b"Method Not Allowed\n"))
            self.assertEqual(answer.fields.pairs[0], (b"Allow", b"HEAD,GET,PUT,POST,DELETE"))

    def test_what_the_store_does_is_shown(self) -> None:
        """One of each kind of write, with its status."""
        for method, target, body, status, action in (
            ("PUT", "/a", "value=1", 201, "set"),
            ("PUT", "/a", "value=2&prevExist=true", 200, "update"),
            ("PUT", "/a", "value=3&prevValue=2", 200, "compareAndSwap"),
            ("PUT", "/a?prevIndex=3", "value=4", 200, "compareAndSwap"),
            ("PUT", "/b", "value=1&prevExist=false", 201, "create"),
            ("POST", "/q", "value=1", 201, "create"),
            ("PUT", "/d", "dir=true", 201, "set"),
            ("DELETE", "/d?dir=true", None, 200, "delete"),
            ("DELETE", "/q?recursive=true", None, 200, "delete"),
            ("DELETE", "/a?prevValue=4", None, 200, "compareAndDelete"),
        ):
            answer = self.answer(method, target, body)
            self.assertEqual((answer.status, json.loads(answer.body)["action"]), (status, action), target)

    def test_no_value_on_success(self) -> None:
        """Only the action is told of a write that gives a value, and all of any other."""
        for method, target, body, shown in (
            ("PUT", "/a", "value=1&noValueOnSuccess=true", {"action": "set"}),
            ("POST", "/q", "noValueOnSuccess=1", {"action": "create"}),
        ):
            answer = self.answer(method, target, body)
            self.assertEqual((answer.status, json.loads(answer.body)), (201, shown))
        self.assertIn("node", self.body("GET", "/a?noValueOnSuccess=true"))
        self.assertIn("node", self.body("DELETE", "/a?noValueOnSuccess=true"))

    def test_listings(self) -> None:
        """One level or all, in order if asked for."""
        for key in ("/d/b", "/d/a/x", "/d/c"):
            self.answer("PUT", key, "value=1")
        nodes = self.body("GET", "/d?sorted=true")["node"]["nodes"]
        self.assertEqual([node["key"] for node in nodes], ["/d/a", "/d/b", "/d/c"])
        self.assertNotIn("nodes", nodes[0])
        self.assertIn("nodes", self.body("GET", "/d?sorted=true&recursive=true")["node"]["nodes"][0])

    def test_long_bodies_are_not_measured(self) -> None:
        """Beyond 2048 bytes Go sends chunks."""
        for length, measured in ((1900, True), (2048, False)):
            self.assertEqual(self.answer("PUT", f"/{length}", "value=" + "x" * length).measured, measured)
            self.assertEqual(self.answer("GET", f"/{length}").measured, measured)

    def test_times_to_live(self) -> None:
        """Counted from this member's clock, to the moment that is proposed."""
        shown = self.body("PUT", "/t", "ttl=5")["node"]
        self.assertEqual((shown["expiration"], shown["ttl"]), ("2026-11-25T19:13:25.5Z", 5))
        self.assertEqual(self.member.proposed[-1].Expiration, 1_795_634_005_500_000_000)
        self.clock.advance(1.75)
        self.assertEqual(self.body("GET", "/t")["node"]["ttl"], 4)
        self.assertNotIn("ttl", self.body("PUT", "/t", "ttl=0")["node"])
        self.assertEqual(self.body("PUT", "/t", "ttl=18446744073709551615")["node"]["ttl"], -1)
        self.assertNotIn("expiration", self.body("PUT", "/t", "ttl=9223372036")["node"])
        self.assertFalse(self.member.proposed[-2].HasField("PrevExist"))

    def test_moments_wrap_around_as_gos_do(self) -> None:
        """64 bits of nanoseconds, twice."""
        now_ns = 1_795_634_000_000_000_000
        self.assertEqual(expiration_ns(5, now_ns), now_ns + 5_000_000_000)
        self.assertEqual(expiration_ns(2**64 - 1, now_ns), now_ns - 1_000_000_000)
        self.assertLess(expiration_ns(9_223_372_036, now_ns), 0)

    def test_what_is_proposed(self) -> None:
        """All that the request says, in the fields of etcd's log entries."""
        self.answer("PUT", "/a", "value=1&dir=true&prevValue=x&prevIndex=7&prevExist=true&refresh=false&ttl=")
        request = self.member.proposed[-1]
        self.assertEqual((request.Method, request.Path, request.Val), ("PUT", b"/1/a", b"1"))
        self.assertEqual((request.Dir, request.PrevValue, request.PrevIndex), (True, b"x", 7))
        self.assertTrue(request.PrevExist and request.HasField("Refresh") and not request.Refresh)
        self.assertFalse(request.HasField("Expiration"))
        self.answer("DELETE", "/a?recursive=true&dir=true&prevExist=false")
        request = self.member.proposed[-1]
        self.assertTrue(request.Recursive and request.Dir and request.HasField("PrevExist") and not request.PrevExist)

    def test_quorum_reads_wait_until_the_member_is_up_to_date(self) -> None:
        """Then they are answered from the tree as it is by then."""
        self.member.reading = []
        outlet, _ = self.send("GET", "/a?quorum=true&wait=true")
        gone, cancel_gone = self.send("GET", "/a?quorum=true")
        failed, _ = self.send("GET", "/a?quorum=true")
        self.assertEqual(outlet.answers, [])
        cancel_gone()
        self.answer("PUT", "/a", "value=1")
        self.assertEqual(self.body("HEAD", "/a?quorum=true")["node"]["value"], "1")  # which etcd answers at once
        reading, self.member.reading = self.member.reading, None
        reading[0][0]()
        reading[1][0]()
        reading[2][1](RequestTimeoutError())
        self.assertEqual(json.loads(outlet.answers[0].body)["node"]["value"], "1")
        self.assertEqual(gone.answers, [])
        self.assertEqual(failed.answers[0].status, 500)

    def test_without_a_leader_writes_fail(self) -> None:
        """With the reason, after whatever time that takes."""
        self.member.failing = RequestTimeoutError()
        answer = self.answer("PUT", "/a", "value=1")
        self.assertEqual(answer.status, 500)
        text = b'"message":"Raft Internal Error","cause":"etcdserver: request timed out","index":0}\n'
        self.assertTrue(answer.body.endswith(text), answer.body)

    def test_a_failure_of_our_own_is_logged(self) -> None:
        """And told as far as that goes."""
        outlet = RecordingOutlet()
        self.keys.refused(RuntimeError("broken"), outlet)
        self.assertEqual((outlet.answers[0].status, b"broken" in outlet.answers[0].body), (500, True))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_write_is_shown_to_all_alike(self) -> None:
        """What its answer says of times to live is what a watch from the history says later."""
        answer = self.answer("PUT", "/t", "ttl=50")
        self.clock.advance(20)
        outlet, _ = self.watch("/t?wait=true&waitIndex=1")
        self.assertEqual(outlet.pieces, [answer.body])


class ParameterTests(KeysCase):
    def fault(self, method: str, target: str, body: str | None = None) -> tuple[int, str]:
        """Code and cause of a refusal that the store is not asked for."""
        answer = self.answer(method, target, body)
        shown = json.loads(answer.body)
        self.assertEqual((answer.status, shown["index"], self.member.proposed), (400, 0, []))
        return shown["errorCode"], shown["cause"]

    def test_truth_values(self) -> None:
        """Go's spellings, and not nothing; with other words for some of the names."""
        for name in ("recursive", "sorted", "wait", "dir", "quorum", "stream", "noValueOnSuccess"):
            for value in (f"{name}=nope", f"{name}=", name):
                self.assertEqual(self.fault("GET", f"/a?{value}"), (209, f'invalid value for "{name}"'))
        for name in ("prevExist", "refresh"):
            for value in (f"{name}=nope", f"{name}=", name):
                self.assertEqual(self.fault("GET", f"/a?{value}"), (209, f"invalid value for {name}"))

    def test_numbers(self) -> None:
        """Of 64 bits without a sign; a time to live may be empty."""
        for name, code in (("prevIndex", 203), ("waitIndex", 203), ("ttl", 202)):
            for value in ("abc", "-1", "%2B1", "1.5", "18446744073709551616"):
                self.assertEqual(self.fault("DELETE", f"/a?{name}={value}"), (code, f'invalid value for "{name}"'))
        self.assertEqual(self.fault("PUT", "/a", "prevIndex=")[0], 203)
        self.assertEqual(self.answer("PUT", "/a", "ttl=").status, 201)

    def test_faults_are_reported_in_etcds_order(self) -> None:
        """The first of several, whatever their order in the request is."""
        faults = [
            ("prevIndex=x", 'invalid value for "prevIndex"'),
            ("waitIndex=x", 'invalid value for "waitIndex"'),
            ("recursive=x", 'invalid value for "recursive"'),
            ("sorted=x", 'invalid value for "sorted"'),
            ("wait=x", 'invalid value for "wait"'),
            ("dir=x", 'invalid value for "dir"'),
            ("quorum=x", 'invalid value for "quorum"'),
            ("stream=x", 'invalid value for "stream"'),
            ("wait=true", '"wait" can only be used with GET requests'),
            ("prevValue=", '"prevValue" cannot be empty'),
            ("noValueOnSuccess=x", 'invalid value for "noValueOnSuccess"'),
            ("ttl=x", 'invalid value for "ttl"'),
            ("prevExist=x", "invalid value for prevExist"),
            ("refresh=x", "invalid value for refresh"),
        ]
        while faults:
            texts = [text for text, _ in faults]
            if "wait=x" in texts:
                texts.remove("wait=true")
            self.assertEqual(self.fault("PUT", "/a", "&".join(reversed(texts)))[1], faults.pop(0)[1])
        self.assertEqual(self.fault("PUT", "/a", "refresh=true&value=x")[0], 211)
        self.assertEqual(self.fault("PUT", "/a", "refresh=true&value=&ttl="), (212, "No TTL value set"))

    def test_wait_is_for_get(self) -> None:
        """Only false may be said otherwise."""
        for method in ("PUT", "POST", "DELETE", "HEAD"):
            self.assertEqual(self.fault(method, "/a?wait=true")[0], 209)
        self.assertEqual(self.answer("HEAD", "/a?wait=false").status, 404)

    def test_forms(self) -> None:
        """Those of bodies come first, and some have none; malformed ones are told with Go's words."""
        self.assertEqual(self.fault("PUT", "/a?x=%zz", "value=%yy"), (210, 'invalid URL escape "%yy"'))
        self.assertEqual(self.fault("PUT", "/a?x=%zz", "value=1"), (210, 'invalid URL escape "%zz"'))
        self.assertEqual(self.fault("PUT", "/a?x=%zz", "ttl=x"), (210, 'invalid URL escape "%zz"'))
        self.assertEqual(self.fault("GET", "/a?x=%zz"), (210, 'invalid URL escape "%zz"'))
        self.assertEqual(self.body("PUT", "/a?value=query&ttl=x", "value=body&ttl=")["node"]["value"], "body")
        self.assertEqual(self.body("PUT", "/a?value=query", "")["node"]["value"], "query")
        self.assertEqual(self.body("PUT", "/a?value=query")["node"]["value"], "query")
        self.assertEqual(self.body("DELETE", "/a", "prevValue=no&dir=x")["action"], "delete")
        request = V2Request("PUT", "/v2/keys/a", "", (("content-type", ";;"),), b"", PEER)
        outlet = RecordingOutlet()
        self.keys.serve(request, outlet)
        self.assertIn(b"mime: no media type", outlet.answers[0].body)


class WatchTests(KeysCase):
    def test_a_long_poll(self) -> None:
        """Headers at once, one event, the end, and no watcher is left."""
        self.answer("PUT", "/foo", "value=1")
        outlet, _ = self.watch("/foo?wait=true")
        self.assertIn((b"X-Etcd-Index", b"1"), outlet.begun[0].pairs)
        self.assertEqual((outlet.pieces, outlet.ended, self.member.v2hub.count), ([], False, 1))
        answer = self.answer("PUT", "/foo", "value=2")
        self.assertEqual((outlet.pieces, outlet.ended, self.member.v2hub.count), ([answer.body], True, 0))
        self.answer("PUT", "/foo", "value=3")
        self.assertEqual(len(outlet.pieces), 1)

    def test_an_event_of_the_past(self) -> None:
        """It comes at once, behind the headers."""
        for value in range(3):
            self.answer("PUT", "/foo", f"value={value}")
        outlet, cancel = self.watch("/foo?wait=true&waitIndex=2")
        self.assertIsNone(cancel)
        self.assertEqual((json.loads(outlet.pieces[0])["node"]["value"], outlet.ended), ("1", True))
        self.assertIn((b"X-Etcd-Index", b"3"), outlet.begun[0].pairs)

    def test_a_forgotten_event(self) -> None:
        """Its index is refused."""
        for value in range(1001):
            self.answer("PUT", "/foo", f"value={value}")
        answer = self.answer("GET", "/foo?wait=true&waitIndex=1")
        self.assertEqual((answer.status, json.loads(answer.body)["errorCode"]), (400, 401))
        self.assertIn((b"X-Etcd-Index", b"1001"), answer.fields.pairs)

    def test_a_stream(self) -> None:
        """All events, those of the past first, until the client goes."""
        self.answer("PUT", "/d/a", "value=1")
        outlet, cancel = self.watch("/d?wait=true&stream=true&recursive=true&waitIndex=1")
        for value in ("2", "3"):
            self.answer("PUT", "/d/a", f"value={value}")
        self.assertEqual([json.loads(piece)["node"]["value"] for piece in outlet.pieces], ["1", "2", "3"])
        self.assertFalse(outlet.ended)
        cancel()
        self.answer("PUT", "/d/a", "value=4")
        self.assertEqual((len(outlet.pieces), outlet.ended, self.member.v2hub.count), (3, False, 0))

    def test_a_client_that_goes_frees_its_watcher(self) -> None:
        """At once."""
        _, cancel = self.watch("/foo?wait=true")
        self.assertEqual(self.member.v2hub.count, 1)
        cancel()
        self.assertEqual(self.member.v2hub.count, 0)
        cancel()

    def test_a_client_that_does_not_read_is_given_up(self) -> None:
        """After a hundred events that wait for it its stream ends; if it reads meanwhile it gets another hundred."""
        outlet, _ = self.watch("/foo?wait=true&stream=true")
        outlet.writable = False
        for value in range(MAX_UNSENT_EVENTS):
            self.answer("PUT", "/foo", f"value={value}")
        self.assertFalse(outlet.ended)
        outlet.writable = True
        self.answer("PUT", "/foo", "value=read")
        outlet.writable = False
        for value in range(MAX_UNSENT_EVENTS):
            self.answer("PUT", "/foo", f"value={value}")
        self.assertFalse(outlet.ended)
        self.answer("PUT", "/foo", "value=last")
        self.assertEqual((outlet.ended, self.member.v2hub.count), (True, 0))

    def test_a_client_that_never_read_is_given_up_while_it_catches_up(self) -> None:
        """The watcher that it was about to get goes, too."""
        for value in range(MAX_UNSENT_EVENTS + 9):
            self.answer("PUT", "/foo", f"value={value}")
        outlet = RecordingOutlet()
        outlet.writable = False
        _, cancel = self.watch("/foo?wait=true&stream=true&waitIndex=1", outlet)
        self.assertEqual((cancel, outlet.ended, self.member.v2hub.count), (None, True, 0))
        self.assertEqual(len(outlet.pieces), MAX_UNSENT_EVENTS + 1)

    def test_a_stream_that_missed_events_ends(self) -> None:
        """As when the store was replaced by a much later one."""
        outlet, _ = self.watch("/foo?wait=true&stream=true")
        (watcher,) = next(iter(self.member.v2hub._watchers.values()))
        watcher.watching.lost()
        self.assertEqual((outlet.ended, self.member.v2hub.count), (True, 0))

    def test_an_event_is_encoded_once_for_all(self) -> None:
        """Everybody gets the same bytes."""
        outlets = [self.watch("/foo?wait=true")[0] for _ in range(3)]
        self.answer("PUT", "/foo", "value=1")
        self.assertEqual(len({id(outlet.pieces[0]) for outlet in outlets}), 1)


class PermissionTests(KeysCase):
    def test_who_may_not_is_refused(self) -> None:
        """Before anything is done, with etcd's answer."""
        self.judge.verdict = False
        for method, target in (("GET", "/a?recursive=true"), ("PUT", "/a/"), ("GET", "?wait=true")):
            answer = self.answer(method, target)
            self.assertEqual(answer.status, 401)
            self.assertEqual(
                answer.body,
                b'{"errorCode":110,"message":"The request requires user authentication",'
                b'"cause":"Insufficient credentials","index":0}\n',
            )
        self.assertEqual(self.judge.asked, [("GET", "/a", True), ("PUT", "/a/", False), ("GET", "", False)])
        self.assertEqual((self.member.proposed, self.member.v2hub.count), ([], 0))

    def test_whether_all_may_is_asked_once(self) -> None:
        """For every request that gets as far as that, and for no other."""
        for opened in (True, False):
            self.judge.open = opened
            for method, target, body, looks in (
                ("PUT", "/a", "value=1", 1),
                ("PUT", "/a", "value=1&ttl=5", 1),
                ("PUT", "/a", "", 1),
                ("PUT", "/a?value=1", None, 1),
                ("POST", "/q", "value=1", 1),
                ("GET", "/a", None, 1),
                ("HEAD", "/a", None, 1),
                ("DELETE", "/a", None, 1),
                ("PUT", "/a", "value=%zz", 0),
                ("PUT", "/a?ttl=x", "value=1", 0),
                ("PATCH", "/a", "value=1", 0),
            ):
                self.judge.looks = 0
                self.judge.asked.clear()
                self.answer(method, target, body)
                self.assertEqual(
                    (self.judge.looks, len(self.judge.asked)), (looks, looks * (not opened)), (method, body)
                )

    def test_a_verdict_may_take_its_time(self) -> None:
        """Then the request is answered, or refused."""
        for allowed, status in ((True, 201), (False, 401)):
            self.judge.verdict = verdict = Deferred[bool]()
            outlet, _ = self.send("PUT", "/a", "value=1")
            self.assertEqual((outlet.answers, self.member.proposed), ([], []))
            verdict.callback(allowed)
            self.assertEqual(outlet.answers[0].status, status)
            self.member.proposed.clear()

    def test_a_client_may_go_meanwhile(self) -> None:
        """Before the verdict, which is not waited for then, and after it."""
        self.judge.verdict = verdict = Deferred[bool]()
        outlet, cancel = self.send("GET", "/a?wait=true")
        cancel()
        self.assertTrue(verdict.called)
        self.assertEqual((outlet.answers, outlet.begun), ([], []))
        self.judge.verdict = verdict = Deferred[bool]()
        outlet, cancel = self.send("GET", "/a?wait=true")
        verdict.callback(True)
        self.assertEqual((len(outlet.begun), self.member.v2hub.count), (1, 1))
        cancel()
        self.assertEqual(self.member.v2hub.count, 0)

    def test_a_verdict_that_fails_is_told(self) -> None:
        """As a failure of our own."""
        self.judge.verdict = verdict = Deferred[bool]()
        outlet, _ = self.send("GET", "/a")
        verdict.errback(RuntimeError("no threads"))
        self.assertEqual(outlet.answers[0].status, 500)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class Named:
    """An endpoint that remembers what it was asked."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def serve(self, request: V2Request, outlet: Any) -> None:
        self.paths.append(request.path)


class SiteTests(SynchronousTestCase):
    def test_each_path_has_its_endpoint(self) -> None:
        """As etcd registers them; everything else is Go's 404."""
        others = {name: Named() for name in ("members", "machines", "stats", "auth")}
        site = V2Site(KeysMember(Clock()), None, others)
        outlet = RecordingOutlet()
        served = {
            "members": ["/v2/members", "/v2/members/", "/v2/members/leader"],
            "machines": ["/v2/machines"],
            "stats": ["/v2/stats/self", "/v2/stats/leader", "/v2/stats/store"],
            "auth": ["/v2/auth/enable", "/v2/auth/users", "/v2/auth/users/x", "/v2/auth/roles/"],
        }
        nowhere = [
            "/v2",
            "/v2/",
            "/v2/keysfoo",
            "/v2/machines/",
            "/v2/stats",
            "/v2/stats/self/",
            "/v2/auth",
            "/v2/nope",
        ]
        for path in (*(path for paths in served.values() for path in paths), *nowhere):
            site.serve(V2Request("GET", path, "", (), b"", PEER), outlet)
        self.assertEqual({name: each.paths for name, each in others.items()}, served)
        self.assertEqual({(answer.status, answer.body) for answer in outlet.answers}, {(404, b"404 page not found\n")})
        self.assertEqual(len(outlet.answers), len(nowhere))
        for path in ("/v2/keys", "/v2/keys/", "/v2/keys/a\nb"):
            site.serve(V2Request("GET", path, "", (), b"", PEER), outlet)
        self.assertEqual([answer.status for answer in outlet.answers[-3:]], [200, 200, 404])
        self.assertIn(b"errorCode", outlet.answers[-1].body)

    def test_without_endpoints_there_are_only_keys(self) -> None:
        """A path that could be one is 404."""
        outlet = RecordingOutlet()
        V2Site(KeysMember(Clock())).serve(V2Request("GET", "/v2/members", "", (), b"", PEER), outlet)
        self.assertEqual(outlet.answers[0].status, 404)
