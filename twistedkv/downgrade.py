"""The downgrade of a cluster by one minor version: what may be asked for, and how it is recorded.

Only the intention is kept, as in etcd 3.5: what it changes is which older members may join.
Source: etcd ``server/etcdserver/v3_server.go`` (Downgrade), ``server/etcdserver/api/membership/downgrade.go``.
"""

from __future__ import annotations

import json
import re
from typing import Final, NamedTuple

from twistedkv.errors import (
    ClusterVersionUnavailableError,
    DowngradeFormatError,
    DowngradeInProgressError,
    DowngradeTargetError,
)

_VERSION: Final = re.compile(
    r"([0-9]+)\.([0-9]+)(?:\.[0-9]+(?:-[0-9A-Za-z-]*(?:\.[0-9A-Za-z-]+)*)?(?:\+[0-9A-Za-z-]*(?:\.[0-9A-Za-z-]+)*)?)?"
)
_MOST: Final = 2**63 - 1  # a version's parts are Go's int64


class Downgrade(NamedTuple):
    """Whether the cluster is being downgraded, and to which version."""

    target: str = ""  # "3.4.0"; empty if it is not
    enabled: bool = False

    def to_json(self) -> bytes:
        """The form of etcd's ``cluster`` bucket."""
        return json.dumps({"target-version": self.target, "enabled": self.enabled}, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, encoded: bytes) -> Downgrade:
        """Read :meth:`to_json`.

        Raises:
            ValueError: it is not that form.
        """
        try:
            fields = json.loads(encoded)
            return cls(str(fields.get("target-version", "")), bool(fields.get("enabled", False)))
        except AttributeError as error:
            raise ValueError(f"not a downgrade record: {encoded!r}") from error

    def check_start(self, wanted: str, cluster_version: str) -> str:
        """The target version, if the cluster may be downgraded to ``wanted`` now.

        Args:
            wanted: a version; what comes after its minor part does not count.
            cluster_version: the cluster's, empty while it is not decided.

        Raises:
            DowngradeFormatError: ``wanted`` is no version.
            ClusterVersionUnavailableError: there is no version to start from.
            DowngradeTargetError: it is not the minor version before the cluster's.
            DowngradeInProgressError: one is going on.
        """
        found = _VERSION.fullmatch(wanted)
        if found is None or max(map(int, found.groups())) > _MOST:
            raise DowngradeFormatError
        if not cluster_version:
            raise ClusterVersionUnavailableError
        major, minor = (int(part) for part in cluster_version.split(".")[:2])
        if (int(found[1]), int(found[2])) != (major, minor - 1):
            raise DowngradeTargetError
        if self.enabled:
            raise DowngradeInProgressError
        return f"{major}.{minor - 1}.0"
