"""What a cluster may be downgraded to."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedkv.downgrade import Downgrade
from twistedkv.errors import (
    ClusterVersionUnavailableError,
    DowngradeFormatError,
    DowngradeInProgressError,
    DowngradeTargetError,
)


class DowngradeTests(SynchronousTestCase):
    """The rules, as etcd 3.5.1 answers."""

    def test_one_minor_version_down(self) -> None:
        """Patch, pre-release and build do not count; the target is the version's beginning."""
        for wanted in ("3.4", "3.4.0", "3.4.9", "03.4", "3.4.0-rc.1", "3.4.0+b"):
            self.assertEqual(Downgrade().check_start(wanted, "3.5.0"), "3.4.0", wanted)

    def test_other_versions(self) -> None:
        """Neither the same, nor a newer, nor one that is further away."""
        for wanted in ("3.5.0", "3.6.0", "3.3", "2.4", "4.4"):
            self.assertRaises(DowngradeTargetError, Downgrade().check_start, wanted, "3.5.0")

    def test_what_is_no_version(self) -> None:
        """Every form that etcd does not take."""
        huge = "99999999999999999999.1"
        for wanted in ("", "x", "3", "v3.4", " 3.4", "3.4\n", "3.-4", "+3.4", "3.4.0.0", "3.4-rc", "3.٤", huge):
            self.assertRaises(DowngradeFormatError, Downgrade().check_start, wanted, "3.5.0")

    def test_the_state_of_the_cluster(self) -> None:
        """It must have a version, and no downgrade going on; a wrong target is said first."""
        self.assertRaises(ClusterVersionUnavailableError, Downgrade().check_start, "3.4", "")
        going_on = Downgrade("3.4.0", True)
        self.assertRaises(DowngradeInProgressError, going_on.check_start, "3.4", "3.5.0")
        self.assertRaises(DowngradeTargetError, going_on.check_start, "3.6", "3.5.0")

    def test_the_record(self) -> None:
        """It is read as it was written; in etcd's form."""
        for downgrade in (Downgrade(), Downgrade("3.4.0", True)):
            self.assertEqual(Downgrade.from_json(downgrade.to_json()), downgrade)
        self.assertEqual(Downgrade("3.4.0", True).to_json(), b'{"target-version":"3.4.0","enabled":true}')
        self.assertEqual(Downgrade.from_json(b"{}"), Downgrade())
        for damaged in (b"", b"[]", b"x"):
            self.assertRaises(ValueError, Downgrade.from_json, damaged)
