"""Passwords of the v2 API: hashes that etcd understands, and checks that cost their time only once."""

from __future__ import annotations

from typing import Any

import bcrypt
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.v2tree import QUICK, Threads
from twistedkv.protocols.v2passwords import Passwords

# of "pw", made by etcd 3.5.1
_OF_ETCD = "$2a$10$eFe.UL344mg4pn59TxjzrucRpvPpqHGF8mgLZS0ry5XeOVRd2eeLK"


class PasswordsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.threads = Threads()
        self.passwords = Passwords(self.threads, QUICK)

    def right(self, user: str, password: bytes, password_hash: str | None) -> bool:
        """The answer, however it comes."""
        answer = self.passwords.check(user, password, password_hash)
        return self.successResultOf(answer) if isinstance(answer, Deferred) else answer

    def hashed(self, password: bytes) -> str:
        """A new hash."""
        return self.successResultOf(self.passwords.hashed(password))

    def test_hashes_are_etcds(self) -> None:
        """They have the form and the cost that Go gives them, and each has its own salt."""
        made = self.successResultOf(Passwords(self.threads).hashed(b"pw"))
        self.assertRegex(made, r"^\$2a\$10\$[./A-Za-z0-9]{53}$")
        self.assertNotEqual(self.hashed(b"pw"), self.hashed(b"pw"))

    def test_a_hash_by_etcd(self) -> None:
        """What etcd kept is understood."""
        self.assertTrue(self.right("root", b"pw", _OF_ETCD))
        self.assertFalse(self.right("root", b"pw2", _OF_ETCD))

    def test_right_and_wrong(self) -> None:
        """Only the very password is right, whatever bytes it has."""
        for password in (b"pw", b"", b"a\0b", b"\xff\xfe", "\u00fc".encode()):
            made = self.hashed(password)
            self.assertTrue(self.right("u", password, made))
            self.assertFalse(self.right("u", password + b"x", made))
            self.assertTrue(self.right("u", password, made))

    def test_bytes_past_the_72nd(self) -> None:
        """They do not count, as in etcd 3.5."""
        made = self.hashed(b"x" * 100)
        self.assertTrue(self.right("u", b"x" * 72, made))
        self.assertTrue(self.right("u", b"x" * 72 + b"other", made))
        self.assertFalse(self.right("u", b"x" * 71, made))

    def test_what_was_right_is_remembered(self) -> None:
        """A client's second request costs no thread; with a wrong password each does."""
        made = self.hashed(b"pw")
        self.right("u", b"pw", made)
        runs = self.threads.runs
        self.assertIs(self.passwords.check("u", b"pw", made), True)
        self.assertEqual(self.threads.runs, runs)
        for count in (1, 2):
            self.assertFalse(self.right("u", b"wrong", made))
            self.assertEqual(self.threads.runs, runs + count)
        self.assertIs(self.passwords.check("u", b"pw", made), True)

    def test_a_new_hash_ends_what_was_remembered(self) -> None:
        """After a change of the password the old one is wrong at once, and the same password is looked at anew."""
        made = self.hashed(b"pw")
        self.right("u", b"pw", made)
        self.assertFalse(self.right("u", b"pw", self.hashed(b"other")))
        again = self.hashed(b"pw")
        self.assertIsInstance(self.passwords.check("u", b"pw", again), Deferred)
        self.assertIsInstance(self.passwords.check("u", b"pw", None), Deferred)

    def test_what_is_remembered_is_one_users(self) -> None:
        """Neither another user with this hash, nor parts that are put together differently, are taken for it."""
        made = self.hashed(b"pw")
        self.right("u", b"pw", made)
        self.assertIsInstance(self.passwords.check("v", b"pw", made), Deferred)
        self.assertIsInstance(self.passwords.check("u", made.encode()[-1:] + b"pw", made[:-1]), Deferred)

    def test_the_memory_is_bounded(self) -> None:
        """Of very many users those who came last are remembered."""
        made = self.hashed(b"pw")
        self.patch(bcrypt, "checkpw", lambda password, against: True)
        for number in range(1024):
            self.assertTrue(self.right(f"u{number}", b"pw", made))
        self.assertIs(self.passwords.check("u0", b"pw", made), True)
        self.right("one more", b"pw", made)
        self.assertIs(self.passwords.check("u0", b"pw", made), True)  # it was used since
        self.assertIsInstance(self.passwords.check("u1", b"pw", made), Deferred)

    def test_no_password_is_kept(self) -> None:
        """Nothing that the object keeps has the password in it."""
        made = self.hashed(b"very secret")
        self.right("u", b"very secret", made)
        self.assertNotIn("very secret", repr(vars(self.passwords)))

    def test_nobody_takes_as_long_as_somebody(self) -> None:
        """For a user who is not there, and for a hash that is none, a hash of the same cost is made."""
        checked: list[bytes] = []
        really = bcrypt.checkpw

        def checkpw(password: bytes, against: bytes) -> bool:
            checked.append(against)
            return really(password, against)

        self.patch(bcrypt, "checkpw", checkpw)
        for password_hash in (None, "", "rubbish", "$2a$04$short", "$9z$04$" + "." * 53, "\udcff"):
            checked.clear()
            self.assertFalse(self.right("u", b"pw", password_hash))
            self.assertRegex(checked[-1].decode(), r"^\$2a\$04\$[.]{53}$")

    def test_the_hash_of_nobody_is_no_ones(self) -> None:
        """Also not if a user's hash in the store is that very text."""
        self.patch(bcrypt, "checkpw", lambda password, against: True)
        self.assertFalse(self.right("u", b"pw", None))
        self.assertFalse(self.right("u", b"pw", "$2a$04$" + "." * 53))

    def test_equal_questions_are_asked_once(self) -> None:
        """When many connections of a client begin at the same time, the password is looked at once."""
        made = self.hashed(b"pw")
        self.threads.held = []
        runs = self.threads.runs
        answers = [self.passwords.check("u", b"pw", made) for _ in range(5)]
        self.assertEqual(self.threads.runs, runs + 1)
        self.threads.release()
        for answer in answers:
            assert isinstance(answer, Deferred)
            self.assertTrue(self.successResultOf(answer))

    def test_few_at_once(self) -> None:
        """Many different questions wait for each other: a flood does not take all processors."""
        self.threads.held = []
        answers = [self.passwords.check("u", b"%d" % number, None) for number in range(6)]
        self.assertEqual(len(self.threads.held), 2)
        self.threads.release()
        for answer in answers:
            assert isinstance(answer, Deferred)
            self.assertFalse(self.successResultOf(answer))

    def test_one_who_goes_away(self) -> None:
        """Whoever cancels does so for itself."""
        made = self.hashed(b"pw")
        self.threads.held = []
        first, second = (self.passwords.check("u", b"pw", made) for _ in range(2))
        assert isinstance(first, Deferred)
        assert isinstance(second, Deferred)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.threads.release()
        self.assertTrue(self.successResultOf(second))

    def test_no_thread_is_no(self) -> None:
        """If the check cannot be made the answer is no, and the log says why; the next one is asked anew."""
        broken = True

        def in_thread(function: Any) -> Deferred[Any]:
            return fail(OSError("no thread")) if broken else self.threads(function)

        self.passwords = Passwords(in_thread, QUICK)
        made = bcrypt.hashpw(b"pw", bcrypt.gensalt(QUICK)).decode()
        self.assertFalse(self.right("u", b"pw", made))
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        broken = False
        self.assertTrue(self.right("u", b"pw", made))
