"""The bytes of a bbolt database, etcd's own file format: written in one go, and read. No I/O.

A file is a sequence of pages. A page begins with its number (8 bytes), flags (2), a count of elements (2) and how many
further pages it runs over (4), little-endian. Pages 0 and 1 describe the file, page 2 lists the free pages, of which
there are none here, and the others are the nodes of B+trees: one tree a bucket, and one of the buckets' names. Elements
of a leaf are flags, the distance from the element to its key, and the lengths of key and value (4 bytes each); those of
a branch are distance, length of the first key below (4 bytes each), and its page (8).

:class:`BoltWriter` builds each tree from its leaves up while the keys come in ascending order, so that it holds one
page a level and nothing else. Source: bbolt ``page.go``, ``db.go`` (meta), ``bucket.go``, ``node.go``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final, NamedTuple, Protocol

PAGE_BYTES: Final = 4096
HEAD_BYTES: Final = 3 * PAGE_BYTES  # the pages that are written last: two descriptions and the list of free pages

_HEADER: Final = Struct("<QHHI")  # page number, flags, elements, further pages
_LEAF_ELEMENT: Final = Struct("<IIII")  # flags, distance to the key, length of the key, of the value
_BRANCH_ELEMENT: Final = Struct("<IIQ")  # distance to the key, length of the key, page
_META: Final = Struct(
    "<IIIIQQQQQ"
)  # magic, version, page size, flags, root, its sequence, free list, pages, transaction
_CHECKSUM: Final = Struct("<Q")
_BUCKET: Final = Struct("<QQ")  # root page, sequence

_BRANCH, _LEAF, _META_PAGE, _FREE_LIST = 1, 2, 4, 16
_IS_BUCKET: Final = 1  # flag of a leaf element
_MAGIC: Final = 0xED0CDAED
_VERSION: Final = 2
_FREE_LIST_PAGE: Final = 2
_MOST_DEPTH: Final = 64  # a tree that is deeper goes in circles


class BoltError(ValueError):
    """What was read is no bbolt database, or a damaged one."""


class BoltWriter:
    """Writes one database: buckets one after another, the keys of each in ascending order.

    Args:
        write: appends to the file. The first call writes a head of zeros; what :meth:`finish` returns goes over it.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._pages = _Pages(write)
        self._buckets: dict[bytes, int] = {}  # name to root page
        self._name: bytes | None = None
        self._tree = _Tree(self._pages)
        write(bytes(HEAD_BYTES))

    def begin(self, name: bytes) -> None:
        """Start the bucket ``name``; the one before is complete.

        Raises:
            ValueError: there is such a bucket already, or the name is empty.
        """
        if not name or name in self._buckets or name == self._name:
            raise ValueError(f"no further bucket can be called {name!r}")
        self._end_bucket()
        self._name = name
        self._tree = _Tree(self._pages)

    def put(self, key: bytes, value: bytes) -> None:
        """Add a pair to the bucket.

        Raises:
            ValueError: there is no bucket, or the key is empty or not above the one before.
        """
        if self._name is None:
            raise ValueError("a pair outside of a bucket")
        self._tree.put(key, value, 0)

    def finish(self) -> bytes:
        """Complete the database; the ``HEAD_BYTES`` that belong at its beginning."""
        self._end_bucket()
        names = _Tree(self._pages)
        for name, root in sorted(self._buckets.items()):
            names.put(name, _BUCKET.pack(root, 0), _IS_BUCKET)
        root = names.close()
        free_list = _HEADER.pack(_FREE_LIST_PAGE, _FREE_LIST, 0, 0)
        parts = [_meta_page(number, root, self._pages.next) for number in (0, 1)]
        return b"".join(part.ljust(PAGE_BYTES, b"\0") for part in (*parts, free_list))

    def _end_bucket(self) -> None:
        if self._name is not None:
            self._buckets[self._name] = self._tree.close()
            self._name = None


class _Pages:
    """Appends pages and numbers them."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.next = HEAD_BYTES // PAGE_BYTES
        self._write = write

    def append(self, flags: int, count: int, parts: list[bytes]) -> int:
        """Write one page, padded to whole pages; its number."""
        number = self.next
        size = _HEADER.size + sum(map(len, parts))
        pages = -(-size // PAGE_BYTES)
        padding = bytes(pages * PAGE_BYTES - size)
        self._write(b"".join((_HEADER.pack(number, flags, count, pages - 1), *parts, padding)))
        self.next += pages
        return number


class _Tree:
    """One B+tree, growing at its right edge."""

    def __init__(self, pages: _Pages) -> None:
        self._pages = pages
        self._last = b""
        self._pairs: list[tuple[bytes, bytes, int]] = []  # of the open leaf
        self._bytes = _HEADER.size  # of the open leaf
        self._branches: list[_Level] = []  # above the leaves, lowest first

    def put(self, key: bytes, value: bytes, flags: int) -> None:
        """Add a pair after all others."""
        if key <= self._last:
            raise ValueError(f"key {key!r} does not come after {self._last!r}")
        self._last = key
        size = _LEAF_ELEMENT.size + len(key) + len(value)
        if self._pairs and self._bytes + size > PAGE_BYTES:
            self._end_leaf()
        self._pairs.append((key, value, flags))
        self._bytes += size

    def close(self) -> int:
        """Write what is open; the root page. An empty tree is one empty leaf."""
        if self._pairs or not self._branches:
            self._end_leaf()
        height = 0
        while True:  # closing a level may start the one above it
            level = self._branches[height]
            if height + 1 == len(self._branches) and len(level.children) == 1:
                return level.children[0][1]
            self._end_branch(height)
            height += 1

    def _end_leaf(self) -> None:
        pairs = self._pairs
        at = len(pairs) * _LEAF_ELEMENT.size
        elements: list[bytes] = []
        data: list[bytes] = []
        for key, value, flags in pairs:
            elements.append(_LEAF_ELEMENT.pack(flags, at, len(key), len(value)))
            data += (key, value)
            at += len(key) + len(value) - _LEAF_ELEMENT.size
        number = self._pages.append(_LEAF, len(pairs), elements + data)
        self._add_child(0, pairs[0][0] if pairs else b"", number)
        self._pairs, self._bytes = [], _HEADER.size

    def _add_child(self, height: int, key: bytes, page: int) -> None:
        if height == len(self._branches):
            self._branches.append(_Level())
        level = self._branches[height]
        size = _BRANCH_ELEMENT.size + len(key)
        if len(level.children) >= 2 and level.bytes + size > PAGE_BYTES:  # with one child a tree would not get narrower
            self._end_branch(height)
        level.children.append((key, page))
        level.bytes += size

    def _end_branch(self, height: int) -> None:
        level = self._branches[height]
        at = len(level.children) * _BRANCH_ELEMENT.size
        elements, keys = [], []
        for key, page in level.children:
            elements.append(_BRANCH_ELEMENT.pack(at, len(key), page))
            keys.append(key)
            at += len(key) - _BRANCH_ELEMENT.size
        number = self._pages.append(_BRANCH, len(elements), elements + keys)
        first = level.children[0][0]
        level.children, level.bytes = [], _HEADER.size
        self._add_child(height + 1, first, number)


class _Level:
    """The open branch page of one level: first key and page of each child."""

    def __init__(self) -> None:
        self.children: list[tuple[bytes, int]] = []
        self.bytes = _HEADER.size


def _meta_page(number: int, root: int, pages: int) -> bytes:
    # Readers take the description with the higher transaction number, the other one if that is damaged.
    meta = _META.pack(_MAGIC, _VERSION, PAGE_BYTES, 0, root, 0, _FREE_LIST_PAGE, pages, 1 - number)
    return _HEADER.pack(number, _META_PAGE, 0, 0) + meta + _CHECKSUM.pack(_fnv1a(meta))


def _fnv1a(data: bytes) -> int:
    """64-bit FNV-1a (Fowler, Noll, Vo; draft-eastlake-fnv)."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFF_FFFF_FFFF_FFFF
    return value


class Bytes(Protocol):
    """What is read: ``bytes``, or an ``mmap`` of a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice, /) -> bytes: ...


class _Page(NamedTuple):
    flags: int
    elements: int
    start: int  # of its elements, in the file
    end: int


class BoltReader:
    """Reads a database, whoever wrote it.

    Args:
        data: the whole file.

    Raises:
        BoltError: neither of its two descriptions is whole, or the file is shorter than they say.
    """

    def __init__(self, data: Bytes) -> None:
        self._data = data
        metas = sorted(filter(None, (self._meta(size * number) for size, number in _META_PLACES)))
        if not metas:
            raise BoltError("no valid meta page")
        _, self._page_bytes, root, pages = metas[-1]
        if len(data) < pages * self._page_bytes:
            raise BoltError(f"the file ends after {len(data)} of {pages * self._page_bytes} bytes")
        self._buckets = {name: value for name, value, flags in self._leaves(self._page(root), 0) if flags & _IS_BUCKET}

    @property
    def buckets(self) -> list[bytes]:
        """The names of all buckets, ascending."""
        return list(self._buckets)

    def items(self, name: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The pairs of one bucket in ascending order; nested buckets are left out.

        Raises:
            KeyError: there is no such bucket.
            BoltError: a page is damaged.
        """
        value = self._buckets[name]
        root, _ = _unpack(_BUCKET, value, 0)
        if root:
            page, data = self._page(root), self._data
        else:  # a small bucket is a page inside of the value
            data = value
            page = _page_at(data, _BUCKET.size, len(data))
        return ((key, value) for key, value, flags in self._leaves(page, 0, data) if not flags & _IS_BUCKET)

    def _meta(self, offset: int) -> tuple[int, int, int, int] | None:
        """Transaction, page size, root page and number of pages by the description at ``offset``; None if damaged."""
        raw = self._data[offset + _HEADER.size : offset + _HEADER.size + _META.size + _CHECKSUM.size]
        if len(raw) < _META.size + _CHECKSUM.size:
            return None
        magic, version, page_bytes, _, root, _, _, pages, transaction = _META.unpack_from(raw)
        (checksum,) = _CHECKSUM.unpack_from(raw, _META.size)
        if (magic, version, checksum) != (_MAGIC, _VERSION, _fnv1a(raw[: _META.size])) or page_bytes < _HEADER.size:
            return None
        return transaction, page_bytes, root, pages

    def _page(self, number: int) -> _Page:
        offset = number * self._page_bytes
        head = self._data[offset : offset + _HEADER.size]
        own, _, _, further = _unpack(_HEADER, head, 0)
        if own != number:
            raise BoltError(f"page {number} says that it is page {own}")
        end = offset + (further + 1) * self._page_bytes
        if end > len(self._data):
            raise BoltError(f"page {number} ends behind the file")
        return _page_at(self._data, offset, end)

    def _leaves(self, page: _Page, depth: int, data: Bytes | None = None) -> Iterator[tuple[bytes, bytes, int]]:
        """Key, value and flags of every element below ``page``, in order."""
        if depth > _MOST_DEPTH:
            raise BoltError("a tree goes in circles")
        elements = (self._data if data is None else data)[page.start : page.end]
        for index in range(page.elements):
            if page.flags & _LEAF:
                at = index * _LEAF_ELEMENT.size
                flags, distance, key_bytes, value_bytes = _unpack(_LEAF_ELEMENT, elements, at)
                key, end = at + distance, at + distance + key_bytes + value_bytes
                if end > len(elements):
                    raise BoltError("an element ends behind its page")
                yield elements[key : key + key_bytes], elements[key + key_bytes : end], flags
            elif page.flags & _BRANCH:
                _, _, child = _unpack(_BRANCH_ELEMENT, elements, index * _BRANCH_ELEMENT.size)
                yield from self._leaves(self._page(child), depth + 1)
            else:
                raise BoltError(f"a page with flags {page.flags:#x} inside of a tree")


# The second description is one page in, and how long that is, the first one may be too damaged to tell.
_META_PLACES: Final = ((0, 0), *((1 << bits, 1) for bits in range(9, 17)))


def _page_at(data: Bytes, offset: int, end: int) -> _Page:
    _, flags, elements, _ = _unpack(_HEADER, data[offset : offset + _HEADER.size], 0)
    return _Page(flags, elements, offset + _HEADER.size, end)


def _unpack(form: Struct, data: bytes, at: int) -> tuple[int, ...]:
    if at + form.size > len(data):
        raise BoltError("the file ends in the middle of a page")
    return form.unpack_from(data, at)
