"""What crosses between a worker and an asynchronous server: a letter up, a letter down, to the byte.

A letter is one ``uint8`` tensor: a head of ``HEAD_BYTES``, then the body. Head, little-endian: magic "TP" (up) or "TR"
(down), format version, kind, version of a model, the body's length, CRC-32 of all else. The body of a push is one wire
message or nothing; that of a reply is one wire message, the dense copy, or the changes: their number (4 bytes), for
each the number of its messages (4), for each message its worker (4) and length (8), and then the messages. A length of
zero stands for the very message that is being answered. Letters are hostile until read.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from thriftgrad.core import PayloadError

FORMAT = 1
_HEAD = struct.Struct("<2sBBQQ")
_CHECKSUM = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _CHECKSUM.size
_COUNT, _MESSAGE = struct.Struct("<I"), struct.Struct("<IQ")
_DENSE = 0x80
_GOODBYE = 2

FRESH = 2**64 - 1
"""The version of who holds no model of the server's yet."""


class Verdict(IntEnum):
    """What the server did with a push."""

    NOTHING = 0  # there was nothing to apply
    APPLIED = 1
    STALE = 2  # measured from too old a model
    DAMAGED = 3
    NOT_FINITE = 4


class Push(NamedTuple):
    """A drift measured from the model of this version; without a message, a request for the newest model alone."""

    version: int
    message: Tensor | None


class Change(NamedTuple):
    """What took the model from one version to the next: messages with the workers they come from; None: your own."""

    messages: tuple[tuple[int, Tensor | None], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of a body that it takes."""
        return _COUNT.size + sum(_MESSAGE.size + (0 if m is None else m.numel()) for _, m in self.messages)


class Reply(NamedTuple):
    """The verdict, and the way to the newest model: a dense copy, or the changes up to this version."""

    verdict: Verdict
    version: int
    dense: Tensor | None
    changes: tuple[Change, ...]


def goodbye() -> Tensor:
    """The letter of a worker that has finished, and its echo."""
    return _letter(b"TP", _GOODBYE, 0, b"")


def is_goodbye(letter: Tensor) -> bool:
    """Whether it is that letter."""
    return torch.equal(letter, goodbye())


def write_push(push: Push) -> Tensor:
    """The letter of a push."""
    body = b"" if push.message is None else _bytes(push.message)
    return _letter(b"TP", int(push.message is not None), push.version, body)


def read_push(letter: Tensor, most: int) -> Push:
    """The push in a letter of at most ``most`` bytes; ``PayloadError`` for anything else."""
    kind, version, body = _read(letter, b"TP", most)
    if kind > 1 or bool(kind) != bool(body):
        raise PayloadError(f"push: kind {kind} with a body of {len(body)} bytes; it was altered.")
    return Push(version, _tensor(body) if kind else None)


def write_reply(reply: Reply) -> Tensor:
    """The letter of a reply."""
    if reply.dense is not None:
        return _letter(b"TR", reply.verdict | _DENSE, reply.version, _bytes(reply.dense))
    table, bodies = [_COUNT.pack(len(reply.changes))], []
    for change in reply.changes:
        table.append(_COUNT.pack(len(change.messages)))
        for rank, message in change.messages:
            body = b"" if message is None else _bytes(message)
            table.append(_MESSAGE.pack(rank, len(body)))
            bodies.append(body)
    return _letter(b"TR", reply.verdict, reply.version, b"".join(table + bodies))


def read_reply(letter: Tensor, most: int) -> Reply:
    """The reply in a letter of at most ``most`` bytes; ``PayloadError`` for anything else."""
    kind, version, body = _read(letter, b"TR", most)
    try:
        verdict = Verdict(kind & ~_DENSE)
    except ValueError:
        raise PayloadError(f"reply: kind {kind} is none of ours; update both ends.") from None
    if kind & _DENSE:
        return Reply(verdict, version, _tensor(body), ())
    try:
        return Reply(verdict, version, None, _changes(body))
    except struct.error:
        raise PayloadError(f"reply: its {len(body)} bytes end within the table of changes; it was truncated.") from None


def changes_nbytes(changes: tuple[Change, ...] | list[Change]) -> int:
    """Bytes of a body of these changes."""
    return _COUNT.size + sum(change.nbytes for change in changes)


def body_nbytes(head: Tensor, most: int) -> int:
    """How many bytes follow a head; ``PayloadError`` if it is none, or the letter would exceed ``most``."""
    return _fields(_bytes(head), None, most)[3]


def _changes(body: bytes) -> tuple[Change, ...]:
    (count,) = _COUNT.unpack_from(body)
    position, lengths = _COUNT.size, []
    for _ in range(count):
        (messages,) = _COUNT.unpack_from(body, position)
        position += _COUNT.size
        if messages * _MESSAGE.size > len(body) - position:
            raise PayloadError(f"reply: {messages} messages are announced where {len(body) - position} bytes are left.")
        lengths.append([_MESSAGE.unpack_from(body, position + i * _MESSAGE.size) for i in range(messages)])
        position += messages * _MESSAGE.size
    changes = []
    for each in lengths:
        messages = []
        for rank, length in each:
            if length > len(body) - position:
                raise PayloadError(f"reply: {length} bytes are announced where {len(body) - position} are left.")
            messages.append((rank, _tensor(body[position : position + length]) if length else None))
            position += length
        changes.append(Change(tuple(messages)))
    if position != len(body):
        raise PayloadError(f"reply: {len(body) - position} bytes are left over; it was extended.")
    return tuple(changes)


def _letter(magic: bytes, kind: int, version: int, body: bytes) -> Tensor:
    head = _HEAD.pack(magic, FORMAT, kind, version, len(body))
    return _tensor(head + _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(head))) + body)


def _read(letter: Tensor, magic: bytes, most: int) -> tuple[int, int, bytes]:
    if letter.dtype != torch.uint8 or letter.dim() != 1:
        raise PayloadError(f"letter: expected a flat uint8 tensor, got {letter.dtype} of {tuple(letter.shape)}.")
    content = _bytes(letter)
    _, kind, version, length = _fields(content, magic, most)
    body = content[HEAD_BYTES:]
    if length != len(body):
        raise PayloadError(
            f"letter: {len(body)} bytes follow a head that announces {length}; it was truncated or extended."
        )
    (checksum,) = _CHECKSUM.unpack_from(content, _HEAD.size)
    if checksum != zlib.crc32(body, zlib.crc32(content[: _HEAD.size])):
        raise PayloadError("letter: the checksum does not fit the bytes, so they were altered on the way.")
    return kind, version, body


def _fields(content: bytes, magic: bytes | None, most: int) -> tuple[bytes, int, int, int]:
    if len(content) < HEAD_BYTES:
        raise PayloadError(f"letter: {len(content)} bytes cannot hold the head of {HEAD_BYTES}; it was truncated.")
    found, form, kind, version, length = _HEAD.unpack_from(content)
    if found not in ((b"TP", b"TR") if magic is None else (magic,)):
        raise PayloadError(f"letter: it begins with {found!r}, so it is none that was expected.")
    if form != FORMAT:
        raise PayloadError(f"letter: format version {form}, this build reads version {FORMAT}; update both ends.")
    if length > most - HEAD_BYTES:
        raise PayloadError(f"letter: a body of {length} bytes is announced, and it cannot exceed {most - HEAD_BYTES}.")
    return found, kind, version, length


def _bytes(x: Tensor) -> bytes:
    content: bytes = x.detach().cpu().contiguous().numpy().tobytes()
    return content


def _tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
