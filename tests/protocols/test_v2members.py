"""``/v2/members`` and ``/v2/machines``: what is shown, changed and refused, in etcd's words."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.changingmember import ME, ChangingMember, learner, started, waiting
from tests.protocols.httpfakes import PEER, RecordingOutlet
from twistedkv.errors import MemberExistsError
from twistedkv.members import MemberInfo
from twistedkv.protocols.answers import Answer
from twistedkv.protocols.v2members import V2Machines, V2Members
from twistedkv.protocols.v2words import OpenAccess, V2Request
from twistedkv.reconfiguration import Added, Reconfiguration

JSON = (b"Content-Type", b"application/json")
CLUSTER = (b"X-Etcd-Cluster-Id", b"c1")
TYPED = (("content-type", "application/json"),)
ONE = '{"id":"1","name":"m1","peerURLs":["http://m1:2380"],"clientURLs":["http://m1:2379"]}'


class Access(OpenAccess):
    """Says what the test says."""

    def __init__(self, word: bool | Deferred[bool]) -> None:
        self.word = word
        self.asked: list[V2Request] = []

    def may_administer(self, request: V2Request) -> Any:
        self.asked.append(request)
        return self.word


class BrokenChanges:
    """Fails by other than a refusal."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def add(self, urls: object, is_learner: bool) -> Added:
        raise self.error

    async def remove(self, member_id: int) -> None:
        raise self.error

    async def update(self, member_id: int, urls: object) -> None:
        raise self.error


class MembersCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.make()

    def make(self, *members: MemberInfo, access: Any = None, changes: Any = None) -> None:
        """A cluster in which everyone has been connected for long."""
        self.member = ChangingMember(members or (started(ME),))
        self.member.peers.since_s = {each.id: 1.0 for each in members}
        changes = changes or Reconfiguration(self.member, lambda: 1000.0)
        self.site = V2Members(self.member, changes, access or OpenAccess())

    def begin(
        self, method: str, below: str = "", body: bytes = b"", fields: tuple[tuple[str, str], ...] = TYPED
    ) -> tuple[RecordingOutlet, Any]:
        """One request, which may not be answered yet; and what tells that its client went away."""
        outlet = RecordingOutlet()
        return outlet, self.site.serve(V2Request(method, f"/v2/members{below}", "", fields, body, PEER), outlet)

    def ask(self, *arguments: Any, **more: Any) -> Answer:
        """The answer to one request."""
        (answer,) = self.begin(*arguments, **more)[0].answers
        return answer

    def assert_answer(self, answer: Answer, status: int, body: str) -> None:
        """An answer in JSON that names the cluster."""
        self.assertEqual((answer.status, answer.body.decode()), (status, body))
        self.assertEqual(tuple(answer.fields.pairs), (JSON, CLUSTER))


class ListTests(MembersCase):
    def test_all_members(self) -> None:
        """By id, those that have not started and learners as well, with empty lists and not without."""
        self.make(started(ME), waiting(0x1F), learner(2))
        body = (
            '{"members":[' + ONE + ',{"id":"2","name":"m2","peerURLs":["http://m2:2380"],"clientURLs":[]},'
            '{"id":"1f","name":"","peerURLs":["http://m31:2380"],"clientURLs":[]}]}\n'
        )
        for below in ("", "/"):
            self.assert_answer(self.ask("GET", below), 200, body)

    def test_a_long_list_has_no_length(self) -> None:
        """Go's server sends what is longer than 2 KiB in chunks."""
        self.assertTrue(self.ask("GET").measured)
        self.make(*map(started, range(1, 31)))
        answer = self.ask("GET")
        self.assertGreater(len(answer.body), 2048)
        self.assertFalse(answer.measured)

    def test_the_leader(self) -> None:
        """One member, or the news that there is none."""
        self.assert_answer(self.ask("GET", "/leader"), 200, ONE + "\n")
        for nobody in (0, 7):
            self.member.lead_by(nobody)
            self.assert_answer(self.ask("GET", "/leader"), 503, '{"message":"During election"}')

    def test_other_paths(self) -> None:
        """A single member cannot be asked for."""
        for below in ("/1", "/leader/", "/x/y"):
            self.assert_answer(self.ask("GET", below), 404, '{"message":"Not found"}')

    def test_names_are_escaped(self) -> None:
        """As Go does it, what is no UTF-8 included."""
        self.make(MemberInfo(ME, ("http://m1:2380",), 'a<"\udcff\ufffdé', ("http://m1:2379",)))
        self.assertIn(b'"name":"a\\u003c\\"\\ufffd\xef\xbf\xbd\xc3\xa9"', self.ask("GET").body)

    def test_other_methods(self) -> None:
        """They are refused whatever the path is, and without the cluster's id."""
        for method in ("HEAD", "PATCH", "get"):
            answer = self.ask(method, "/leader")
            self.assertEqual((answer.status, answer.body), (405, b"Method Not Allowed\n"))
            fields = dict(answer.fields.pairs)
            self.assertEqual(fields[b"Allow"], b"GET,POST,DELETE,PUT")
            self.assertNotIn(b"X-Etcd-Cluster-Id", fields)


class ChangeTests(MembersCase):
    def test_add(self) -> None:
        """The newcomer is answered with its id, its URLs in order; what is below the path does not matter."""
        self.make(started(ME))
        answer = self.ask("POST", "/x", b'{"peerURLs":["http://b:1"," http://a:1 "]}')
        new = next(each for each in self.member.membership.members.values() if each.id != ME)
        text = f'{{"id":"{new.id:x}","name":"","peerURLs":["http://a:1","http://b:1"],"clientURLs":[]}}\n'
        self.assert_answer(answer, 201, text)
        self.assertFalse(new.is_learner)

    def test_add_is_answered_when_it_is_applied(self) -> None:
        """Not before, and not at all if the client is gone by then; the change goes on without it."""
        self.member.holding = True
        outlet, _ = self.begin("POST", "", b'{"peerURLs":["http://a:1"]}')
        self.assertEqual(outlet.answers, [])
        self.member.apply()
        self.assertEqual([answer.status for answer in outlet.answers], [201])
        (new,) = set(self.member.membership.members) - {ME}
        outlet, gone = self.begin("DELETE", f"/{new:x}")
        gone()
        self.member.apply()
        self.assertEqual(outlet.answers, [])
        self.assertEqual(set(self.member.membership.members), {ME})

    def test_add_conflicts(self) -> None:
        """With a URL that another member has, or the unlikely id."""
        answer = self.ask("POST", "", b'{"peerURLs":["http://m1:2380"]}')
        self.assert_answer(answer, 409, '{"message":"membership: peerURL exists"}')
        self.make(changes=BrokenChanges(MemberExistsError()))
        answer = self.ask("POST", "", b'{"peerURLs":["http://a:1"]}')
        self.assert_answer(answer, 409, '{"message":"membership: ID exists"}')

    def test_strict_checks(self) -> None:
        """What could cost the quorum is refused without a word on why."""
        self.make(started(ME), waiting(2))
        answer = self.ask("POST", "", b'{"peerURLs":["http://a:1"]}')
        self.assert_answer(answer, 500, '{"message":"Internal Server Error"}')
        self.make()
        self.assert_answer(self.ask("DELETE", "/1"), 500, '{"message":"Internal Server Error"}')

    def test_urls_that_reach_nobody(self) -> None:
        """etcd takes them; we refuse what the strict reader of URLs does not know."""
        for url in (b"http://a:1?x=1", b"http://:1", b"unix://a:1"):
            for method, below in (("POST", ""), ("PUT", "/1")):
                answer = self.ask(method, below, b'{"peerURLs":["%b"]}' % url)
                self.assert_answer(answer, 400, '{"message":"etcdserver: given member URLs are invalid"}')

    def test_remove(self) -> None:
        """An id in hexadecimal, in any case and with zeros before it; gone is gone."""
        self.make(started(ME), started(0xAB), started(3))
        answer = self.ask("DELETE", "/00Ab", fields=())
        self.assertEqual((answer.status, answer.body, tuple(answer.fields.pairs)), (204, b"", (CLUSTER,)))
        self.assertNotIn(0xAB, self.member.membership.members)
        answer = self.ask("DELETE", "/ab")
        self.assert_answer(answer, 410, '{"message":"Member permanently removed: ab"}')

    def test_members_that_are_not(self) -> None:
        """An id is shown as a number; what is none as it came."""
        self.make(*(started(each) for each in (ME, 2, 3)))
        for below, shown in {
            "/0012": "12",
            "/ffffffffffffffff": "ffffffffffffffff",
            "/11112222333344445": "11112222333344445",
            "/0x12": "0x12",
            "/12/": "12/",
            "/12/3": "12/3",
            "/+1": "+1",
            "/1_2": "1_2",
            '/"<x>': '\\"\\u003cx\\u003e',
            "/\udcff": "\\ufffd",
            "/\u0661": "\u0661",
        }.items():
            text = f'{{"message":"No such member: {shown}"}}'
            self.assert_answer(self.ask("DELETE", below), 404, text)
            self.assert_answer(self.ask("PUT", below, b'{"peerURLs":["http://a:1"]}'), 404, text)

    def test_a_member_must_be_named(self) -> None:
        """Before anything else is looked at."""
        for method in ("DELETE", "PUT"):
            for below in ("", "/"):
                answer = self.ask(method, below, b"x", fields=())
                self.assertEqual((answer.status, answer.body), (405, b"Method Not Allowed\n"))
                fields = dict(answer.fields.pairs)
                self.assertEqual(fields.get(b"X-Etcd-Cluster-Id"), b"c1")
                self.assertNotIn(b"Allow", fields)

    def test_update(self) -> None:
        """Other URLs, if nobody else has them."""
        self.make(started(ME), started(2), started(3))
        answer = self.ask("PUT", "/2", b'{"peerURLs":["http://new:1"]}')
        self.assertEqual((answer.status, answer.body, tuple(answer.fields.pairs)), (204, b"", (CLUSTER,)))
        self.assertEqual(self.member.membership.members[2].peer_urls, ("http://new:1",))
        answer = self.ask("PUT", "/2", b'{"peerURLs":["http://m1:2380"]}')
        self.assert_answer(answer, 409, '{"message":"membership: peerURL exists"}')
        self.ask("DELETE", "/2")
        answer = self.ask("PUT", "/2", b'{"peerURLs":["http://m7:2380"]}')
        self.assert_answer(answer, 500, '{"message":"Internal Server Error"}')

    def test_failures_are_logged(self) -> None:
        """What is no refusal is answered all the same, and its traceback is kept."""
        self.make(changes=BrokenChanges(RuntimeError("no")))
        for method, below in (("POST", ""), ("DELETE", "/1"), ("PUT", "/1")):
            answer = self.ask(method, below, b'{"peerURLs":["http://a:1"]}')
            self.assert_answer(answer, 500, '{"message":"Internal Server Error"}')
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 3)


class BodyTests(MembersCase):
    def test_bodies_that_are_refused(self) -> None:
        """In Go's words, and etcd's."""
        struct = 'struct { PeerURLs []string \\"json:\\\\\\"peerURLs\\\\\\"\\" }'
        field = "json: cannot unmarshal {} into Go struct field .peerURLs of type {}"
        for body, text in {
            "": "unexpected end of JSON input",
            " {": "unexpected end of JSON input",
            "x": "invalid character 'x' looking for beginning of value",
            '{"peerURLs":["http://a:1"]} x': "invalid character 'x' after top-level value",
            '{"peerURLs":[],}': "invalid character '}' looking for beginning of object key string",
            "{}": "no valid URLs given",
            "null": "no valid URLs given",
            '{"peerURLs":null}': "no valid URLs given",
            '{"peerURLs":["http://a:1"],"PEERURLS":null}': "no valid URLs given",
            "[]": f"json: cannot unmarshal array into Go value of type {struct}",
            "1": f"json: cannot unmarshal number into Go value of type {struct}",
            '"x"': f"json: cannot unmarshal string into Go value of type {struct}",
            '{"peerURLs":{}}': field.format("object", "[]string"),
            '{"peerURLs":"x"}': field.format("string", "[]string"),
            '{"peerURLs":1.5}': field.format("number", "[]string"),
            '{"peerURLs":[true,2]}': field.format("bool", "string"),
            '{"peerURLs":[["a"]]}': field.format("array", "string"),
            '{"peerURLs":[null]}': "URL scheme must be http, https, unix, or unixs: ",
            '{"peerurl\u017f":["http://a"]}': 'URL address does not have the form \\"host:port\\": http://a',
        }.items():
            for method, below in (("POST", ""), ("PUT", "/1")):
                answer = self.ask(method, below, body.encode())
                self.assert_answer(answer, 400, f'{{"message":"{text}"}}')
        self.assertEqual(self.member.changes, [])

    def test_content_type(self) -> None:
        """Its parameters are cut off; only with one its case does not matter."""
        for given, shown in {
            "": "",
            "text/plain": "text/plain",
            "Application/JSON": "Application/JSON",
            " Text/Plain ; x": "text/plain",
        }.items():
            fields = (("content-type", given),) if given else ()
            answer = self.ask("POST", "", b"{}", fields=fields)
            self.assert_answer(answer, 415, f'{{"message":"Bad Content-Type {shown}, accept application/json"}}')
        for given in ("application/json", "Application/JSON; charset=utf-8", "application/json ;x"):
            self.assertEqual(self.ask("POST", "", b"{}", fields=(("content-type", given),)).status, 400)


class AccessTests(MembersCase):
    def test_who_may_not(self) -> None:
        """The refusal names no cluster, and nothing is changed."""
        access = Access(False)
        self.make(access=access)
        answer = self.ask("DELETE", "/1")
        self.assertEqual((answer.status, answer.body), (401, b'{"message":"Insufficient credentials"}'))
        self.assertEqual(tuple(answer.fields.pairs), (JSON,))
        self.assertEqual([request.method for request in access.asked], ["DELETE"])
        self.assertEqual(self.member.changes, [])

    def test_a_word_that_takes_time(self) -> None:
        """A password is looked at elsewhere meanwhile; whoever goes away before that has nothing changed."""
        word: Deferred[bool] = Deferred()
        self.make(started(ME), started(2), started(3), access=Access(word))
        outlet, _ = self.begin("DELETE", "/2")
        self.assertEqual(outlet.answers, [])
        word.callback(True)
        self.assertEqual([answer.status for answer in outlet.answers], [204])
        self.make(started(ME), started(2), started(3), access=Access(Deferred()))
        outlet, gone = self.begin("DELETE", "/2")
        gone()
        self.assertEqual((outlet.answers, self.member.changes), ([], []))


class MachinesTests(SynchronousTestCase):
    def test_machines(self) -> None:
        """All client URLs as one text, in their order; the sender cuts the body off for HEAD."""
        member = ChangingMember([MemberInfo(ME, (), "m1", ("http://c:1", "http://a:2")), started(2), waiting(3)])
        site = V2Machines(member)
        seen = []
        for method, path in (("GET", ""), ("HEAD", ""), ("POST", ""), ("GET", "/"), ("POST", "/x")):
            outlet = RecordingOutlet()
            site.serve(V2Request(method, f"/v2/machines{path}", "", (), b"", PEER), outlet)
            (answer,) = outlet.answers
            seen.append((answer.status, answer.body.decode(), dict(answer.fields.pairs).get(b"Allow")))
        listed = "http://a:2, http://c:1, http://m2:2379"
        refused = (405, "Method Not Allowed\n", b"GET,HEAD")
        missing = (404, "404 page not found\n", None)
        self.assertEqual(seen, [(200, listed, None), (200, listed, None), refused, missing, missing])
