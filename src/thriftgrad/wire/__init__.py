"""The wire format: payloads to bytes and back.

A message is one ``uint8`` tensor: a header of ``HEADER_BYTES``, then for each payload its carrier and its side
tensors, in order, integer symbols packed to their true width, streams of variable length behind their length. The
receiver knows the layout from the compressor, the tensor's spec and the levels the workers agreed on; it treats the
bytes as hostile and answers anything unexpected with ``PayloadError``.

Header, little-endian: magic "TG", format version, version of the levels (0: none, then 1 ... 255 and 1 again), a digest
of the layouts and levels, the body's length in bytes, the body's CRC-32.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.core import Compressor, Layout, Payload, PayloadError, TensorSpec
from thriftgrad.core.tree import leaves, map_leaves

VERSION = 1
_HEADER = struct.Struct("<2sBBIQI")
HEADER_BYTES = _HEADER.size


def pack(*payloads: Payload[Any]) -> Tensor:
    """One message, uint8: ``len(pack(p)) == p.nbytes + HEADER_BYTES``.

    >>> import torch; from thriftgrad import Key, QSGD
    >>> payload, _ = QSGD(bits=4, bucket=512).compress(torch.randn(1000), None, Key(0))
    >>> payload.nbytes, len(pack(payload)) - HEADER_BYTES  # 1000 nibbles and two float32 norms
    (508, 508)
    """
    pieces = [piece for payload in payloads for piece in _pieces(payload)]
    device = pieces[0].device if pieces else torch.device("cpu")
    message = torch.cat((torch.empty(HEADER_BYTES, dtype=torch.uint8, device=device), *pieces))
    body = message[HEADER_BYTES:]
    digest = _digest([payload.layout for payload in payloads])
    levels = _levels_version(payload.layout for payload in payloads)
    header = bytearray(_HEADER.pack(b"TG", VERSION, levels, digest, body.numel(), _checksum(body)))
    message[:HEADER_BYTES] = torch.frombuffer(header, dtype=torch.uint8)
    return message


def unpack(
    message: Tensor | bytes, compressor: Compressor[Any, Any], spec: TensorSpec, shared: Any = None
) -> Payload[Any]:
    """The payload of one tensor of this spec, compressed by this compressor.

    ``shared``: what ``compressor.shared(state)`` says, where the state holds levels that the workers agreed on.
    Raises ``PayloadError`` if the bytes are truncated, too long, altered, of another format version, of
    another compressor or spec, or of another version of the levels.
    """
    (payload,) = unpack_all(message, [compressor.layout(spec, shared)])
    return payload


def unpack_all(message: Tensor | bytes, layouts: Sequence[Layout]) -> list[Payload[Any]]:
    """The payloads of a message packed from payloads of these layouts."""
    if not isinstance(message, Tensor):
        message = torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else torch.tensor([]).byte()
    body = _checked_body(message.contiguous(), layouts)
    position = 0

    def read(nbytes: int) -> Tensor:
        nonlocal position
        if nbytes > len(body) - position:
            raise PayloadError(f"payload: {nbytes} bytes are announced where {len(body) - position} are left.")
        position += nbytes
        return body[position - nbytes : position]

    def take(spec: TensorSpec) -> Tensor:
        if not spec.variable:
            return _from_bytes(read(spec.nbytes), spec)
        length = int.from_bytes(read(spec.prefix_nbytes).tolist(), "little")
        if length > spec.numel:
            raise PayloadError(f"payload: a stream of {length} bytes is announced, and it cannot exceed {spec.numel}.")
        return read(length).clone()

    def payload(layout: Layout) -> Payload[Any]:
        if layout.carrier.alphabet is None or layout.carrier.alphabet > 256:
            return Payload(take(layout.carrier), map_leaves(take, layout.side), layout)
        stream = read(layout.carrier.nbytes)
        _check_symbols(
            kernels.largest_symbol(stream, layout.carrier.numel, layout.carrier.alphabet), layout.carrier.alphabet
        )
        return Payload(None, map_leaves(take, layout.side), layout, stream)

    payloads = [payload(layout) for layout in layouts]
    if position != len(body):
        raise PayloadError(f"payload: {len(body) - position} bytes are left over; it was extended.")
    return payloads


def message_nbytes(layouts: Sequence[Layout]) -> int | None:
    """The length of a message before it exists; None where it depends on the data."""
    return None if any(layout.variable for layout in layouts) else most_nbytes(layouts)


def most_nbytes(layouts: Sequence[Layout]) -> int:
    """A length that no message of these layouts exceeds."""
    return HEADER_BYTES + sum(layout.nbytes for layout in layouts)


def _checked_body(message: Tensor, layouts: Sequence[Layout]) -> Tensor:
    if message.dtype != torch.uint8 or message.dim() != 1:
        raise PayloadError(f"payload: expected a flat uint8 tensor, got {message.dtype} of {tuple(message.shape)}.")
    if len(message) < HEADER_BYTES:
        raise PayloadError(f"payload: {len(message)} bytes cannot hold the header of {HEADER_BYTES}; it was truncated.")
    magic, version, levels, digest, length, checksum = _HEADER.unpack(bytes(message[:HEADER_BYTES].tolist()))
    if magic != b"TG":
        raise PayloadError(f"payload: it begins with {magic!r} and not with b'TG', so it is none of ours.")
    if version != VERSION:
        raise PayloadError(f"payload: format version {version}, this build reads version {VERSION}; update both ends.")
    if levels != (expected_levels := _levels_version(layouts)):
        raise PayloadError(
            f"payload: packed with levels of version {levels}, and version {expected_levels} is held here; "
            "bring all workers to one state, for instance from one checkpoint."
        )
    if digest != _digest(layouts):
        with_levels = ", or with other levels of the same version" if levels else ""
        expected = ", ".join(f"{layout.label} of {list(layout.spec.shape)}" for layout in layouts[:3])
        raise PayloadError(
            f"payload: packed by another compressor or for another tensor than the expected {expected}{with_levels}."
        )
    body, most = message[HEADER_BYTES:], sum(layout.nbytes for layout in layouts)
    least = most if not any(layout.variable for layout in layouts) else 0
    if not len(body) == length or not least <= length <= most:
        raise PayloadError(
            f"payload: {len(body)} bytes follow a header that announces {length}, and the layout needs "
            f"{most if least else f'at most {most}'}; it was truncated or extended."
        )
    if checksum != _checksum(body):
        raise PayloadError("payload: the checksum does not fit the bytes, so they were altered on the way.")
    return body


def _digest(layouts: Sequence[Layout]) -> int:
    return zlib.crc32(";".join(layout.identity for layout in layouts).encode())


def _levels_version(layouts: Iterable[Layout]) -> int:
    """The greatest version of any levels, in the byte that the header has for it."""
    versions = [codebook.version for layout in layouts for codebook in leaves(layout.shared)]
    return 1 + (max(versions) - 1) % 255 if versions else 0


def _checksum(body: Tensor) -> int:
    return zlib.crc32(body.cpu().contiguous().numpy().data)


def _pieces(payload: Payload[Any]) -> Iterator[Tensor]:
    """The bytes of the carrier and of each tensor of the side."""
    layout = payload.layout
    carrier = _to_bytes(payload.carrier, layout.carrier) if layout.carrier.alphabet is None else payload.packed
    yield carrier
    for tensor, spec in zip(leaves(payload.side), leaves(layout.side), strict=True):
        yield _to_bytes(tensor, spec).to(carrier.device)  # a seed lives on the CPU


def _to_bytes(tensor: Tensor, spec: TensorSpec) -> Tensor:
    if spec.variable:
        length = torch.tensor([*tensor.numel().to_bytes(spec.prefix_nbytes, "little")], dtype=torch.uint8)
        return torch.cat((length.to(tensor.device), tensor))
    if spec.alphabet is not None:
        return kernels.pack(tensor, spec.alphabet)
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _from_bytes(stream: Tensor, spec: TensorSpec) -> Tensor:
    if spec.alphabet is None:
        # A copy, because a view in another type needs an aligned start.
        return stream.clone().view(spec.dtype).view(spec.shape)
    symbols = kernels.unpack(stream, spec.numel, spec.alphabet)
    _check_symbols(int(symbols.max()) if spec.numel else 0, spec.alphabet)
    return symbols.to(spec.dtype).view(spec.shape)


def _check_symbols(largest: int, alphabet: int) -> None:
    """``PayloadError`` if the largest symbol is none of the alphabet's."""
    if largest >= alphabet:
        raise PayloadError(f"payload: symbol {largest} outside the alphabet of {alphabet}.")
