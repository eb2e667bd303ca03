"""Regenerate the ``*_pb2`` modules of this package from its ``.proto`` files, or check that they are fresh.

Run as ``python twistedkv/pb/generate.py`` (writes) or with ``--check`` (exit status 1 when a module is stale).
It needs grpcio-tools, a development dependency; a running server needs only protobuf. It is run as a file, not
as a module, so that a missing or broken ``_pb2`` module cannot stop its own regeneration.

Every message is registered in a descriptor pool of our own (``twistedkv.pb.pool``): in protobuf's default pool
the names of etcd's packages would collide with those of any etcd client library in the same process.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent.parent
_POOL_IMPORT = "from google.protobuf import descriptor_pool as _descriptor_pool\n"
_OUR_IMPORT = "from twistedkv.pb import pool as _descriptor_pool\n"


def generate() -> dict[Path, str]:
    """The path and the text of every generated file, without touching the checkout.

    Raises:
        RuntimeError: protoc refused the files, or writes its modules in a form that this script does not know.
    """
    from grpc_tools import protoc

    sources = sorted(PACKAGE.glob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = ["protoc", f"-I{ROOT}", f"--python_out={scratch}", f"--pyi_out={scratch}", *map(str, sources)]
        if protoc.main(arguments) != 0:
            raise RuntimeError("protoc failed; its own message is above")
        made = {}
        for path in sorted((Path(scratch) / "twistedkv" / "pb").iterdir()):
            text = path.read_text()
            if path.suffix == ".py":
                if _POOL_IMPORT not in text:
                    raise RuntimeError(f"{path.name}: protoc no longer imports descriptor_pool the way we replace it")
                text = text.replace(_POOL_IMPORT, _OUR_IMPORT)
            made[PACKAGE / path.name] = text
    return made


def main(arguments: list[str]) -> int:
    """Write the modules, or with ``--check`` name the stale ones; the exit status."""
    stale = [(path, text) for path, text in generate().items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path, _ in stale:
            print(f"{path.relative_to(ROOT)} is stale: run make generate", file=sys.stderr)
        return 1 if stale else 0
    for path, text in stale:
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
