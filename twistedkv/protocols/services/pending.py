"""The methods of etcd's API that are not written yet: known by name, with the permission that they will need."""

from __future__ import annotations

from typing import Any

from twistedkv.pb import rpc_pb2
from twistedkv.protocols.rpc import Access, Method, service_methods, unimplemented

_OPEN, _IDENTITY, _KEYS, _ADMIN = Access.OPEN, Access.IDENTITY, Access.KEYS, Access.ADMIN

_PENDING: tuple[tuple[Any, str, dict[str, Access]], ...] = (
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
