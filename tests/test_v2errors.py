"""Refusals of the v2 API: numbers, texts and statuses that clients know."""

from __future__ import annotations

import pickle

from twisted.trial.unittest import SynchronousTestCase

from twistedkv.v2errors import MESSAGES, V2Code, V2Error

# number, text, status; etcd server/etcdserver/api/v2error/error.go
TABLE = """
100 404 Key not found
101 412 Compare failed
102 403 Not a file
103 400 Reached the max number of peers in the cluster
104 400 Not a directory
105 412 Key already exists
106 400 The prefix of given key is a keyword in etcd
107 400 Root is read only
108 403 Directory not empty
109 400 Peer address has existed
110 401 The request requires user authentication
200 400 Value is Required in POST form
201 400 PrevValue is Required in POST form
202 400 The given TTL in POST form is not a number
203 400 The given index in POST form is not a number
204 400 Value or TTL is required in POST form
205 400 The given timeout in POST form is not a number
206 400 Name is required in POST form
207 400 Index or value is required
208 400 Index and value cannot both be specified
209 400 Invalid field
210 400 Invalid POST form
211 400 Value provided on refresh
212 400 A TTL must be provided on refresh
300 500 Raft Internal Error
301 500 During Leader Election
400 400 watcher is cleared due to etcd recovery
401 400 The event in requested index is outdated and cleared
402 400 Standby Internal Error
403 400 Invalid active size
404 400 Standby remove delay
500 400 Client Internal Error
"""


class V2ErrorTests(SynchronousTestCase):
    """What a refusal says."""

    def test_numbers_texts_and_statuses(self) -> None:
        """Each number has etcd's text and HTTP status, and there are no others."""
        lines = [f"{code:d} {V2Error(code).status} {MESSAGES[code]}" for code in V2Code]
        self.assertEqual(lines, TABLE.strip().splitlines())

    def test_facts_are_kept(self) -> None:
        """A refusal says what it was about, and at which index; it was asked for nothing if it does not."""
        error = V2Error(V2Code.KEY_NOT_FOUND, "/1/foo", 7)
        self.assertEqual((error.code, error.cause, error.index), (V2Code.KEY_NOT_FOUND, "/1/foo", 7))
        bare = V2Error(V2Code.INVALID_FORM)
        self.assertEqual((bare.cause, bare.index), ("", 0))

    def test_text_is_of_now(self) -> None:
        """Written to a log it is one line, with the index that somebody who knew it has put in."""
        error = V2Error(V2Code.KEY_NOT_FOUND, "/1/foo")
        error.index = 1002
        self.assertEqual(str(error), "Key not found (/1/foo) [1002]")

    def test_travels(self) -> None:
        """A copy of it, as traceback tools make one, is the same."""
        copy = pickle.loads(pickle.dumps(V2Error(V2Code.TEST_FAILED, "[a != b]", 9)))
        self.assertEqual((copy.code, copy.cause, copy.index), (V2Code.TEST_FAILED, "[a != b]", 9))
