"""The cluster's own nodes: as etcd makes them, one index a change, and read again."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.v2trees import new_store
from twistedkv.clusternodes import (
    attributes_set,
    facts,
    found,
    member_added,
    member_removed,
    member_updated,
    version_set,
)
from twistedkv.members import MemberInfo, Membership
from twistedkv.storage.directory import Directory

A = MemberInfo(0xBDAE9BBC11DD390D, ("http://127.0.0.1:2380",), "m1", ("http://127.0.0.1:2379",))
LEARNER = MemberInfo(0x1C, ("http://192.0.2.1:2380", "http://192.0.2.2:2380"), is_learner=True)
PROMOTED = MemberInfo(0x1C, LEARNER.peer_urls)


def files(directory: Directory) -> dict[str, str]:
    """The values below ``/0`` by path."""
    return {
        node.path: node.value for node in directory.nodes() if node.children is None and node.path.startswith("/0/")
    }


class ChangeTests(SynchronousTestCase):
    """What comes through the log."""

    def setUp(self) -> None:
        self.directory, self.history = new_store()

    def assert_happened(self, *events: str) -> None:
        """These events and no others, one index each."""
        told = [f"{event.action} {event.node.key}" for event in self.history.events]
        self.assertEqual(told, list(events))
        self.assertEqual([event.index for event in self.history.events], list(range(1, len(events) + 1)))
        self.assertEqual(self.directory.index, len(events))

    def test_a_member_that_starts(self) -> None:
        """It is added, says who it is, and the version is decided: the first key of a client gets the index 4."""
        member_added(self.directory, A)
        attributes_set(self.directory, A)
        version_set(self.directory, "3.5.0")
        self.assertEqual(
            files(self.directory),
            {
                "/0/members/bdae9bbc11dd390d/attributes": ('{"name":"m1","clientURLs":["http://127.0.0.1:2379"]}'),
                "/0/members/bdae9bbc11dd390d/raftAttributes": '{"peerURLs":["http://127.0.0.1:2380"]}',
                "/0/version": "3.5.0",
            },
        )
        self.assert_happened(
            "create /0/members/bdae9bbc11dd390d/raftAttributes",
            "set /0/members/bdae9bbc11dd390d/attributes",
            "set /0/version",
        )

    def test_a_learner_that_is_promoted_and_removed(self) -> None:
        """A promotion changes what there is; of a member that is removed only that is left."""
        member_added(self.directory, LEARNER)
        path = "/0/members/1c/raftAttributes"
        urls = '"peerURLs":["http://192.0.2.1:2380","http://192.0.2.2:2380"]'
        self.assertEqual(files(self.directory), {path: f'{{{urls},"isLearner":true}}'})
        member_updated(self.directory, PROMOTED)
        self.assertEqual(files(self.directory), {path: f"{{{urls}}}"})
        member_removed(self.directory, 0x1C)
        self.assertEqual(files(self.directory), {"/0/removed_members/1c": ""})
        self.assertIsNone(self.directory.node("/0/members/1c"))
        self.assert_happened(f"create {path}", f"update {path}", "delete /0/members/1c", "create /0/removed_members/1c")

    def test_nodes_that_are_not_as_they_should_be(self) -> None:
        """In a store from somebody else a member may be there already, or not at all; the member goes on."""
        member_updated(self.directory, LEARNER)
        member_added(self.directory, PROMOTED)
        self.assertEqual(facts(self.directory).membership.members, {0x1C: PROMOTED})
        member_removed(self.directory, 7)
        member_removed(self.directory, 7)
        self.assert_happened(
            *["set /0/members/1c/raftAttributes"] * 2,
            "create /0/removed_members/7",
        )

    def test_attributes_in_gos_words(self) -> None:
        """Nothing is written for what is empty, and text as Go writes it."""
        attributes_set(self.directory, MemberInfo(1, (), "<ä>"))
        attributes_set(self.directory, MemberInfo(2, (), "", ("http://a",)))
        attributes_set(self.directory, MemberInfo(3, ()))
        values = [r'{"name":"\u003cä\u003e"}', '{"clientURLs":["http://a"]}', "{}"]
        self.assertEqual(list(files(self.directory).values()), values)


class FactTests(SynchronousTestCase):
    """What is known by them."""

    def test_found_and_read(self) -> None:
        """The nodes of a cluster that was known otherwise say the same of it, whatever the order of its members."""
        texts = []
        for members in ((A, LEARNER), (LEARNER, A)):
            directory, _ = new_store()
            found(directory, Membership({each.id: each for each in members}, [7, 0xAB]), "3.5.0")
            membership, version = facts(directory)
            self.assertEqual((membership.members, membership.removed), ({A.id: A, 0x1C: LEARNER}, {7, 0xAB}))
            self.assertEqual((version, directory.index), ("3.5.0", 6))
            texts.append([(node.path, node.value, node.modified) for node in directory.nodes()])
        self.assertEqual(*texts)

    def test_of_nothing(self) -> None:
        """An empty store has no members; nor are nodes made for a cluster without any."""
        directory, _ = new_store()
        found(directory, Membership(), "")
        self.assertEqual((directory.index, directory.changed), (0, set()))
        membership, version = facts(directory)
        self.assertEqual((membership.members, membership.removed, version), ({}, set(), ""))

    def test_what_they_cannot_be(self) -> None:
        """Anything else is refused by one kind of error of one line."""
        good = '{"peerURLs":["http://a:2380"]}'
        for nodes in (
            {"/0/members": "none"},
            {"/0/members/x/raftAttributes": good},
            {"/0/members/0/raftAttributes": good},
            {f"/0/members/{'1' * 17}/raftAttributes": good},
            {"/0/members/a": good},
            {"/0/members/a/attributes": "{}"},
            {"/0/members/a/raftAttributes/b": ""},
            {"/0/members/a/raftAttributes": ""},
            {"/0/members/a/raftAttributes": "[]"},
            {"/0/members/a/raftAttributes": "[" * 100_000},
            {"/0/members/a/raftAttributes": '{"peerURLs":[7]}'},
            {"/0/members/a/raftAttributes": good, "/0/members/a/attributes": '{"name":{}}'},
            {"/0/removed_members/y": ""},
            {"/0/version/a": ""},
        ):
            directory, _ = new_store()
            for path, value in nodes.items():
                directory.set(path, False, value)
            error = self.assertRaises(ValueError, facts, directory)
            self.assertEqual(len(str(error).splitlines()), 1, nodes)
