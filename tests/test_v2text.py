"""The v2 store as text: what is written, and what is understood of what others write."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.v2trees import START_NS, change_tree, content, new_store, text_of, told
from twistedkv.gojson import timestamp
from twistedkv.members import MemberInfo, Membership
from twistedkv.storage.directory import Directory
from twistedkv.v2text import _ns, decode, encode

A = MemberInfo(0xBDAE9BBC11DD390D, ("http://127.0.0.1:2380",), "m1", ("http://127.0.0.1:2379",))
LEARNER = MemberInfo(0x1C, ("http://192.0.2.1:2380", "http://192.0.2.2:2380"), is_learner=True)

# Of etcd 3.5.1, one member, after its first election; but for the counters, which are what it had to do.
_TIMES = '"ExpireTime":"0001-01-01T00:00:00Z"'
_MEMBER = "/0/members/bdae9bbc11dd390d"
_RAFT = r"{\"peerURLs\":[\"http://127.0.0.1:2380\"]}"
_ATTRIBUTES = r"{\"name\":\"m1\",\"clientURLs\":[\"http://127.0.0.1:2379\"]}"
OF_ETCD = "".join(
    (
        '{"Root":{"Path":"/","CreatedIndex":0,"ModifiedIndex":0,' + _TIMES + ',"Value":"","Children":{',
        '"0":{"Path":"/0","CreatedIndex":0,"ModifiedIndex":0,' + _TIMES + ',"Value":"","Children":{',
        '"members":{"Path":"/0/members","CreatedIndex":1,"ModifiedIndex":1,' + _TIMES + ',"Value":"","Children":{',
        f'"bdae9bbc11dd390d":{{"Path":"{_MEMBER}","CreatedIndex":1,"ModifiedIndex":1,{_TIMES},"Value":"","Children":{{',
        f'"attributes":{{"Path":"{_MEMBER}/attributes","CreatedIndex":2,"ModifiedIndex":2,{_TIMES},',
        f'"Value":"{_ATTRIBUTES}","Children":null}},',
        f'"raftAttributes":{{"Path":"{_MEMBER}/raftAttributes","CreatedIndex":1,"ModifiedIndex":1,{_TIMES},',
        f'"Value":"{_RAFT}","Children":null}}}}}}}}}},',
        '"version":{"Path":"/0/version","CreatedIndex":3,"ModifiedIndex":3,' + _TIMES + ',"Value":"3.5.0",',
        '"Children":null}}},',
        '"1":{"Path":"/1","CreatedIndex":0,"ModifiedIndex":0,' + _TIMES + ',"Value":"","Children":{}}}},',
        '"WatcherHub":{"EventHistory":{"Queue":{"Events":[',
        f'{{"action":"create","node":{{"key":"{_MEMBER}/raftAttributes","value":"{_RAFT}",',
        '"modifiedIndex":1,"createdIndex":1}},',
        f'{{"action":"set","node":{{"key":"{_MEMBER}/attributes","value":"{_ATTRIBUTES}",',
        '"modifiedIndex":2,"createdIndex":2}},',
        '{"action":"set","node":{"key":"/0/version","value":"3.5.0","modifiedIndex":3,"createdIndex":3}},',
        ",".join(["null"] * 997),
        '],"Size":3,"Front":0,"Back":3,"Capacity":1000},"StartIndex":1,"LastIndex":3}},"CurrentIndex":3,',
        '"Stats":{"getsSuccess":0,"getsFail":0,"setsSuccess":0,"setsFail":0,"deleteSuccess":0,"deleteFail":0,',
        '"updateSuccess":0,"updateFail":0,"createSuccess":0,"createFail":0,"compareAndSwapSuccess":0,',
        '"compareAndSwapFail":0,"compareAndDeleteSuccess":0,"compareAndDeleteFail":0,"expireCount":0,"watchers":0},',
        '"CurrentVersion":2}',
    )
).encode()

members = st.builds(
    MemberInfo,
    st.integers(1, 2**64 - 1),
    st.lists(st.text(), min_size=1, max_size=3).map(tuple),
    st.text(max_size=5),
    st.lists(st.text(), max_size=2).map(tuple),
    st.booleans(),
)


def uncounted(text: bytes) -> bytes:
    """A text without what the store counted."""
    return text[: text.index(b'"Stats"')]


class EncodeTests(SynchronousTestCase):
    """What is written."""

    def test_as_etcd_writes_it(self) -> None:
        """The text of one member is etcd's to the byte, but for what it counted."""
        self.assertEqual(uncounted(text_of(Membership({A.id: A}), "3.5.0")), uncounted(OF_ETCD))
        stored = decode(OF_ETCD)
        self.assertEqual(encode(stored.directory, stored.history), OF_ETCD)

    def test_learners_newcomers_and_removed_members(self) -> None:
        """Who has not started has no attributes; who was removed has a node without a value."""
        text = json.loads(text_of(Membership({A.id: A, LEARNER.id: LEARNER}, [7, 0xAB]), ""))
        cluster = text["Root"]["Children"]["0"]["Children"]
        self.assertEqual(list(cluster), ["members", "removed_members"])
        self.assertEqual(list(cluster["members"]["Children"]), ["1c", "bdae9bbc11dd390d"])
        (raft,) = cluster["members"]["Children"]["1c"]["Children"].values()
        self.assertEqual(raft["Path"], "/0/members/1c/raftAttributes")
        self.assertEqual(
            raft["Value"], '{"peerURLs":["http://192.0.2.1:2380","http://192.0.2.2:2380"],"isLearner":true}'
        )
        removed = cluster["removed_members"]["Children"]
        self.assertEqual(
            [(name, node["Value"], node["Children"]) for name, node in removed.items()],
            [
                ("7", "", None),
                ("ab", "", None),
            ],
        )
        self.assertEqual(text["CurrentIndex"], 5)

    def test_the_history_is_bounded(self) -> None:
        """It has as many slots as etcd's, however many changes there were: more would be an error there."""
        text = json.loads(text_of(Membership({A.id: A}, range(1, 1_500)), "3.5.0"))
        history = text["WatcherHub"]["EventHistory"]
        queue = history["Queue"]
        self.assertEqual((len(queue["Events"]), queue["Size"], queue["Front"], queue["Back"]), (1_000, 1_000, 0, 0))
        self.assertEqual((history["StartIndex"], history["LastIndex"], text["CurrentIndex"]), (503, 1_502, 1_502))
        self.assertEqual(queue["Events"][0]["node"]["modifiedIndex"], 503)

    def test_nodes_with_an_end(self) -> None:
        """To the nanosecond in nodes and events; what is left of it is rounded up to seconds, and left out if none is
        or if nobody knows."""
        directory, history = new_store()
        directory.create("/1/d", True, "", START_NS + 1)
        directory.set("/1/d/k", False, "v", START_NS + 2_500_000_000)
        directory.set("/1/d/k", False, "v", START_NS, refresh=True)
        directory.expire(START_NS)
        text = json.loads(encode(directory, history, START_NS))
        self.assertEqual(text["Root"]["Children"]["1"]["Children"]["d"]["ExpireTime"], "2023-11-14T22:13:20.000000001Z")
        first, second, third, fourth = text["WatcherHub"]["EventHistory"]["Queue"]["Events"][:4]
        key, is_dir, end = {"key": "/1/d/k"}, {"dir": True}, "2023-11-14T22:13:20"
        self.assertEqual(
            first,
            {
                "action": "create",
                "node": {"key": "/1/d", **is_dir, "expiration": f"{end}.000000001Z", "ttl": 1, **indexes(1, 1)},
            },
        )
        later = {**key, "value": "v", "expiration": "2023-11-14T22:13:22.5Z", "ttl": 3, **indexes(2, 2)}
        self.assertEqual(second, {"action": "set", "node": later})
        node = {**key, "value": "v", "expiration": f"{end}Z"}
        self.assertEqual(
            third, {"action": "set", "node": {**node, **indexes(3, 3)}, "prevNode": later, "refresh": True}
        )
        self.assertEqual(
            fourth, {"action": "expire", "node": {**key, **indexes(4, 3)}, "prevNode": {**node, **indexes(3, 3)}}
        )
        (event, *_) = json.loads(encode(directory, history, START_NS + 1_500_000_001))["WatcherHub"]["EventHistory"][
            "Queue"
        ]["Events"]
        self.assertEqual(event["node"]["ttl"], -1)
        self.assertNotIn(b'"ttl"', encode(directory, history))

    def test_children_by_name(self) -> None:
        """They are in the order of their names, not of their paths, and an empty directory has none."""
        directory, history = new_store()
        for path in ("/1/a/b", "/1/a-b", "/1/a", "/1/b"):
            if directory.node(path) is None:
                directory.set(path, path == "/1/b", "")
        text = json.loads(encode(directory, history))
        users = text["Root"]["Children"]["1"]["Children"]
        self.assertEqual(list(users), ["a", "a-b", "b"])
        self.assertEqual((list(users["a"]["Children"]), users["a-b"]["Children"]), (["b"], None))
        self.assertEqual(users["b"]["Children"], {})


def indexes(modified: int, created: int) -> dict[str, int]:
    """As they are in an event."""
    return {"modifiedIndex": modified, "createdIndex": created}


class RoundTripTests(SynchronousTestCase):
    """There and back."""

    @given(st.lists(members, unique_by=lambda member: member.id, max_size=4), st.sets(st.integers(1, 2**64 - 1)))
    @settings(max_examples=25, deadline=None)
    def test_members(self, some: list[MemberInfo], removed: set[int]) -> None:
        """Whoever is in it is read back equal, and the text does not depend on the order in which it was learnt."""
        removed -= {member.id for member in some}
        text = text_of(Membership({member.id: member for member in some}, removed), "3.5.0")
        membership, version = decode(text).facts
        self.assertEqual(membership.members, {member.id: member for member in some})
        self.assertEqual((membership.removed, version), (removed, "3.5.0"))
        other = Membership({member.id: member for member in reversed(some)}, sorted(removed, reverse=True))
        self.assertEqual(text_of(other, "3.5.0"), text)

    @given(st.integers(0, 1 << 32), st.integers(0, 100))
    @settings(max_examples=25, deadline=None)
    def test_anything(self, seed: int, length: int) -> None:
        """Whatever was done to a store, its text makes the same tree and the same history; and the same text again."""
        dice = Random(seed)
        directory, history = new_store()
        for _ in range(length):
            change_tree(directory, dice)
        text = encode(directory, history, START_NS)
        found = decode(text)
        self.assertEqual(content(found.directory), content(directory))
        self.assertEqual(told(found.history), told(history))
        self.assertEqual(
            (found.directory.index, found.directory.first_end_ns), (directory.index, directory.first_end_ns)
        )
        self.assertEqual(uncounted(encode(found.directory, found.history, START_NS)), uncounted(text))
        self.assertEqual(found.directory.changed, set())

    def test_deep_trees(self) -> None:
        """A tree of so many levels that the standard library cannot read its text."""
        directory, history = new_store()
        directory.set("/1" + "/a" * 900 + "/k", False, "v", START_NS)
        directory.set("/1" + "/b" * 700, True, "")
        found = decode(encode(directory, history))
        self.assertEqual(content(found.directory), content(directory))
        self.assertEqual(told(found.history), told(history))

    def test_it_goes_on(self) -> None:
        """A store that was read takes changes as the one that was written: equal answers, equal events."""
        dice = Random(7)
        directory, history = new_store()
        for _ in range(300):
            change_tree(directory, dice)
        found = decode(encode(directory, history))
        state = dice.getstate()
        for each in (directory, found.directory):
            dice.setstate(state)
            for _ in range(300):
                change_tree(each, dice)
        self.assertEqual(content(found.directory), content(directory))
        self.assertEqual(told(found.history), told(history))

    @given(st.integers(-(1 << 63), (1 << 63) - 1))
    @settings(max_examples=100)
    def test_times(self, ns: int) -> None:
        """Any moment that a request can name is read back to the nanosecond."""
        self.assertEqual(_ns(timestamp(ns)), ns)


def edited(**fields: Any) -> bytes:
    """etcd's text with other children of ``/0``; None takes one away."""
    text = json.loads(OF_ETCD)
    children = text["Root"]["Children"]["0"]["Children"]
    for name, node in fields.items():
        if node is None:
            del children[name]
        else:
            children[name] = node
    return json.dumps(text).encode()


def file(value: Any, **fields: Any) -> dict[str, Any]:
    """A node with a value."""
    return {"Value": value, "Children": None, **fields}


def directory(**children: Any) -> dict[str, Any]:
    """A node with children."""
    return {"Value": "", "Children": children}


def with_history(*events: Any, **queue: Any) -> bytes:
    """etcd's text with another history."""
    text = json.loads(OF_ETCD)
    slots = [*events, *[None] * (4 - len(events))]
    fields = {"Events": slots, "Size": len(events), "Front": 0, "Back": len(events), "Capacity": 4, **queue}
    text["WatcherHub"]["EventHistory"]["Queue"] = fields
    return json.dumps(text).encode()


def event(index: int, **fields: Any) -> dict[str, Any]:
    """One that sets a key."""
    return {"action": "set", "node": {"key": "/1/k", "value": str(index), **indexes(index, index)}, **fields}


class DecodeTests(SynchronousTestCase):
    """What is understood."""

    def test_what_etcd_writes(self) -> None:
        """Members, who was removed, and the version; the tree and its history."""
        (membership, version), tree, history = decode(OF_ETCD)
        self.assertEqual((membership.members, membership.removed, version), ({A.id: A}, set(), "3.5.0"))
        self.assertEqual((tree.index, len(list(tree.nodes()))), (3, 8))
        self.assertEqual([each.index for each in history.events], [1, 2, 3])

    def test_ends_in_any_zone(self) -> None:
        """etcd writes the ends of nodes in the time of its place."""
        nodes = {
            "a": file("v", ExpireTime="2030-01-01T02:30:00.123456789+02:30"),
            "b": file("v", ExpireTime="2029-12-31T23:00:00.123-01:00"),
            "c": file("v", ExpireTime="2030-01-01T00:00:00Z"),
            "d": directory(),
        }
        text = json.loads(OF_ETCD)
        text["Root"]["Children"]["1"]["Children"] = nodes
        tree = decode(json.dumps(text).encode()).directory
        noon = 1_893_456_000_000_000_000
        ends = [node.expires_ns for node in tree.nodes() if node.path.startswith("/1/")]
        self.assertEqual(ends, [noon + 123_456_789, noon + 123_000_000, noon, 0])
        self.assertEqual(tree.first_end_ns, noon)

    def test_a_history_that_goes_round(self) -> None:
        """The ring may begin anywhere; what is behind a gap, or does not lead up to the index, is forgotten."""
        for text, wanted in (
            (with_history(event(2), event(3)), [2, 3]),
            (with_history(event(3), event(0), event(1), event(2), Front=1, Back=1), [0, 1, 2, 3]),
            (with_history(event(2), event(3), None, event(1), Front=3, Size=3), [1, 2, 3]),
            (with_history(event(1), event(3)), [3]),
            (with_history(event(1), event(2)), []),
            (with_history(), []),
        ):
            self.assertEqual([each.index for each in decode(text).history.events], wanted)

    def test_events(self) -> None:
        """Every field of an event, and of nodes without this or that."""
        before = {"key": "/1/k", "dir": True, "expiration": "2023-11-14T22:13:20.5Z", "ttl": 7, **indexes(1, 1)}
        (found,) = decode(with_history(event(3, prevNode=before, refresh=True))).history.events
        self.assertEqual((found.action, found.index, found.etcd_index, found.refresh), ("set", 3, 3, True))
        self.assertEqual(found.node, ("/1/k", "3", False, 0, (), 3, 3))
        self.assertEqual(found.previous, ("/1/k", None, True, START_NS + 500_000_000, (), 1, 1))

    def test_bytes_that_are_no_text(self) -> None:
        """They survive where we wrote them; what no text has otherwise is Go's sign for that."""
        tree, history = new_store()
        tree.set("/1/\udcff/\udc80\udcff", False, "\udcfe", START_NS)
        tree.set("/1/\udcff/\udc80\udcff", False, "")
        self.assertEqual(content(decode(encode(tree, history)).directory), content(tree))
        self.assertEqual(told(decode(encode(tree, history)).history), told(history))
        text = OF_ETCD.replace(b'"Value":"3.5.0"', rb'"Value":"\ud800\udcc3\udca9\udfff"')
        self.assertEqual(value_of(decode(text).directory, "/0/version"), "\U000100c3\udca9\ufffd")

    def test_parts_may_be_missing(self) -> None:
        """Without a version, or without a member, that is what it says; what is not known is passed over."""
        self.assertEqual(decode(edited(version=None)).facts.cluster_version, "")
        self.assertEqual(decode(edited(members=None)).facts.membership.members, {})
        self.assertEqual(decode(edited(new=file("what will be"))).facts.membership.members, {A.id: A})
        self.assertEqual(decode(b'{"Root":{"Children":{}}}').facts.cluster_version, "")
        member = directory(raftAttributes=file('{"peerURLs":null}'), attributes=file("{}"))
        self.assertEqual(decode(edited(members=directory(a=member))).facts.membership.members, {10: MemberInfo(10, ())})

    def test_what_it_is_not(self) -> None:
        """Anything else is refused by one kind of error of one line."""
        raft = file('{"peerURLs":["http://a:2380"]}')
        deep = json.loads(OF_ETCD)
        deep["Root"]["Children"]["1"]["Children"]["k"] = file("v", Path="/1/other")
        for broken in (
            b"",
            b"\xff",
            b"[]",
            b"{}",
            b"[" * 100_000,
            b"[" * 100_000 + b"]" * 100_000,
            OF_ETCD + b"x",
            b'{"Root":{"Children":null}}',
            b'{"Root":{"Children":{"0":[]}}}',
            b'{"Root":{"Children":{"0":{"Children":[]}}}}',
            b'{"Root":{"Children":{"0":{"Children":null,"Value":""}}}}',
            json.dumps(deep).encode(),
            edited(version=file(7)),
            edited(version=file("3.5.0", ModifiedIndex=4)),
            edited(version=file("3.5.0", ModifiedIndex=-1)),
            edited(version=file("3.5.0", CreatedIndex=1.5)),
            edited(version=file("3.5.0", CreatedIndex=True)),
            edited(version=file("3.5.0", CreatedIndex=2**64)),
            edited(version=file("3.5.0", ExpireTime="soon")),
            edited(version=file("3.5.0", ExpireTime=7)),
            edited(version=file("3.5.0", ExpireTime="2030-02-30T00:00:00Z")),
            edited(version=file("3.5.0", ExpireTime="2030-01-01T00:00:00+25:00")),
            edited(version=file("3.5.0", ExpireTime="9999-01-01T00:00:00Z")),
            edited(**{"a/b": file("")}),
            edited(**{"..": file("")}),
            edited(**{"": file("")}),
            edited(members=file("none")),
            edited(members=directory(x=directory(raftAttributes=raft))),
            edited(members=directory(a=directory(attributes=file("{}")))),
            edited(members=directory(a=directory(raftAttributes=file("")))),
            edited(removed_members=directory(y=file(""))),
            OF_ETCD.replace(b'"WatcherHub":{', b'"WatcherHub":[],"x":{'),
            OF_ETCD.replace(b'"EventHistory"', b'"EventHistories"'),
            with_history(event(3), Events={}),
            with_history(event(3), Capacity=5),
            with_history(event(3), Size=5),
            with_history(event(3), Size=2),
            with_history(event(3), Front=4),
            with_history(event(3, action="steal")),
            with_history(event(3, action=7)),
            with_history(event(3, node=None)),
            with_history(event(3, node={"key": "k"})),
            with_history(event(3, node={"key": "/1/k", "value": 7})),
            with_history(event(3, prevNode=[])),
            with_history(event(3, prevNode={"key": "/1/k", "expiration": "0"})),
        ):
            error = self.assertRaises(ValueError, decode, broken)
            self.assertEqual(len(str(error).splitlines()), 1, broken[:100])


def value_of(tree: Directory, path: str) -> str:
    """Of the file at ``path``."""
    node = tree.node(path)
    assert node is not None
    return node.value
