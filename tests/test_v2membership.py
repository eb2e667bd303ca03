"""The members in the v2 store's text: what is written, and what is understood of what others write."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.members import MemberInfo, Membership
from twistedkv.v2membership import decode, encode

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


class EncodeTests(SynchronousTestCase):
    """What is written."""

    def test_as_etcd_writes_it(self) -> None:
        """The text of one member is etcd's to the byte."""
        self.assertEqual(encode(Membership({A.id: A}), "3.5.0"), OF_ETCD)

    def test_learners_newcomers_and_removed_members(self) -> None:
        """Who has not started has no attributes; who was removed has a node without a value."""
        text = json.loads(encode(Membership({A.id: A, LEARNER.id: LEARNER}, [7, 0xAB]), ""))
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
        text = json.loads(encode(Membership({A.id: A}, range(1, 1_500)), "3.5.0"))
        history = text["WatcherHub"]["EventHistory"]
        queue = history["Queue"]
        self.assertEqual((len(queue["Events"]), queue["Size"], queue["Front"], queue["Back"]), (1_000, 1_000, 0, 0))
        self.assertEqual((history["StartIndex"], history["LastIndex"], text["CurrentIndex"]), (503, 1_502, 1_502))
        self.assertEqual(queue["Events"][0]["node"]["modifiedIndex"], 503)

    @given(st.lists(members, unique_by=lambda member: member.id, max_size=4), st.sets(st.integers(1, 2**64 - 1)))
    def test_read_back(self, some: list[MemberInfo], removed: set[int]) -> None:
        """Whatever is written is read back equal, and does not depend on the order in which it was learnt."""
        text = encode(Membership({member.id: member for member in some}, removed), "3.5.0")
        membership, version = decode(text)
        self.assertEqual(membership.members, {member.id: member for member in some})
        self.assertEqual((membership.removed, version), (removed, "3.5.0"))
        other = Membership({member.id: member for member in reversed(some)}, sorted(removed, reverse=True))
        self.assertEqual(encode(other, "3.5.0"), text)


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


def file(value: Any) -> dict[str, Any]:
    """A node with a value."""
    return {"Value": value, "Children": None}


def directory(**children: Any) -> dict[str, Any]:
    """A node with children."""
    return {"Value": "", "Children": children}


class DecodeTests(SynchronousTestCase):
    """What is understood."""

    def test_what_etcd_writes(self) -> None:
        """Members, who was removed, and the version."""
        membership, version = decode(OF_ETCD)
        self.assertEqual((membership.members, membership.removed, version), ({A.id: A}, set(), "3.5.0"))

    def test_what_users_have_in_it(self) -> None:
        """Keys of the v2 API, with and without an end, and anything else that is not known, are passed over."""
        text = json.loads(OF_ETCD)
        text["Root"]["Children"]["1"]["Children"] = {
            "a": {**file("v"), "ExpireTime": "2030-01-01T00:00:00Z"},
            "d": directory(members=directory(**{"7": file("no member")})),
        }
        text["Root"]["Children"]["0"]["Children"]["new"] = file("what will be")
        del text["WatcherHub"]
        membership, version = decode(json.dumps(text).encode())
        self.assertEqual((membership.members, version), ({A.id: A}, "3.5.0"))

    def test_parts_may_be_missing(self) -> None:
        """Without a version, or without a member, that is what it says."""
        self.assertEqual(decode(edited(version=None)).cluster_version, "")
        self.assertEqual(decode(edited(members=None)).membership.members, {})
        self.assertEqual(decode(b'{"Root":{"Children":{}}}').cluster_version, "")
        member = directory(raftAttributes=file('{"peerURLs":null}'), attributes=file("{}"))
        self.assertEqual(decode(edited(members=directory(a=member))).membership.members, {10: MemberInfo(10, ())})

    def test_what_it_is_not(self) -> None:
        """Anything else is refused by one kind of error of one line."""
        raft = file('{"peerURLs":["http://a:2380"]}')
        for broken in (
            b"",
            b"\xff",
            b"[]",
            b"{}",
            b"[" * 100_000,
            b'{"Root":{"Children":null}}',
            b'{"Root":{"Children":{"0":[]}}}',
            edited(version=file(7)),
            edited(members=file("none")),
            edited(members=directory(x=directory(raftAttributes=raft))),
            edited(members=directory(**{"0": directory(raftAttributes=raft)})),
            edited(members=directory(**{"1" * 17: directory(raftAttributes=raft)})),
            edited(members=directory(a=directory(attributes=file("{}")))),
            edited(members=directory(a=directory(raftAttributes=file("")))),
            edited(members=directory(a=directory(raftAttributes=file("[]")))),
            edited(members=directory(a=directory(raftAttributes=file("[" * 100_000)))),
            edited(members=directory(a=directory(raftAttributes=file('{"peerURLs":[7]}')))),
            edited(members=directory(a=directory(raftAttributes=raft, attributes=file('{"name":{}}')))),
            edited(removed_members=directory(y=file(""))),
        ):
            error = self.assertRaises(ValueError, decode, broken)
            self.assertEqual(len(str(error).splitlines()), 1, broken[:100])
