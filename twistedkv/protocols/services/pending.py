"""The methods of etcd's API that are not written yet: known by name, with the permission that they will need."""

from __future__ import annotations

from typing import Any

from twistedkv.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from twistedkv.protocols.rpc import Access, Method, service_methods, unimplemented

_OPEN, _IDENTITY, _KEYS, _ADMIN = Access.OPEN, Access.IDENTITY, Access.KEYS, Access.ADMIN

_PENDING: tuple[tuple[Any, str, dict[str, Access]], ...] = (
    (rpc_pb2, "Watch", {"Watch": _KEYS}),
    (
        rpc_pb2,
        "Lease",
        {
            "LeaseGrant": _IDENTITY,
            "LeaseRevoke": _KEYS,
            "LeaseKeepAlive": _KEYS,
            "LeaseTimeToLive": _KEYS,
            "LeaseLeases": _IDENTITY,
        },
    ),
    (
        rpc_pb2,
        "Auth",
        {
            "AuthEnable": _ADMIN,
            "AuthDisable": _ADMIN,
            "AuthStatus": _ADMIN,
            "Authenticate": _OPEN,
            "UserAdd": _ADMIN,
            "UserGet": _IDENTITY,
            "UserList": _ADMIN,
            "UserDelete": _ADMIN,
            "UserChangePassword": _ADMIN,
            "UserGrantRole": _ADMIN,
            "UserRevokeRole": _ADMIN,
            "RoleAdd": _ADMIN,
            "RoleGet": _IDENTITY,
            "RoleList": _ADMIN,
            "RoleDelete": _ADMIN,
            "RoleGrantPermission": _ADMIN,
            "RoleRevokePermission": _ADMIN,
        },
    ),
    (v3lock_pb2, "Lock", {"Lock": _KEYS, "Unlock": _KEYS}),
    (
        v3election_pb2,
        "Election",
        {"Campaign": _KEYS, "Proclaim": _KEYS, "Leader": _KEYS, "Observe": _KEYS, "Resign": _KEYS},
    ),
)


def pending_methods() -> list[Method]:
    """Methods that answer UNIMPLEMENTED."""
    return [
        method
        for module, name, access in _PENDING
        for method in service_methods(
            module.DESCRIPTOR.services_by_name[name], {each: (needed, unimplemented) for each, needed in access.items()}
        )
    ]
