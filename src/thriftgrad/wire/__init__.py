"""The wire format: payloads to bytes and back.

A message is one ``uint8`` tensor: a header of ``HEADER_BYTES``, then for each payload its carrier and its side
tensors, in order, integer symbols packed to their true width. The receiver knows the layout from the compressor and the
tensor's spec; it treats the bytes as hostile and answers anything unexpected with ``PayloadError``.

Header, little-endian: magic "TG", format version, a zero byte, a digest of the layouts, the body's length in bytes,
the body's CRC-32.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
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
    pieces = [
        _to_bytes(tensor, spec).to(payload.carrier.device)  # a seed lives on the CPU
        for payload in payloads
        for tensor, spec in zip(
            leaves((payload.carrier, payload.side)),
            leaves((payload.layout.carrier, payload.layout.side)),
            strict=True,
        )
    ]
    body = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.uint8)
    digest = _digest([payload.layout for payload in payloads])
    header = bytearray(_HEADER.pack(b"TG", VERSION, 0, digest, body.numel(), _checksum(body)))
    return torch.cat((torch.frombuffer(header, dtype=torch.uint8).to(body.device), body))


def unpack(message: Tensor | bytes, compressor: Compressor[Any, Any], spec: TensorSpec) -> Payload[Any]:
    """The payload of one tensor of this spec, compressed by this compressor.

    Raises ``PayloadError`` if the bytes are truncated, too long, altered, of another format version, or of
    another compressor or spec.
    """
    (payload,) = unpack_all(message, [compressor.layout(spec)])
    return payload


def unpack_all(message: Tensor | bytes, layouts: Sequence[Layout]) -> list[Payload[Any]]:
    """The payloads of a message packed from payloads of these layouts."""
    if not isinstance(message, Tensor):
        message = torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else torch.tensor([]).byte()
    body = _checked_body(message.contiguous(), layouts)
    position = 0

    def take(spec: TensorSpec) -> Tensor:
        nonlocal position
        position += spec.nbytes
        return _from_bytes(body[position - spec.nbytes : position], spec)

    return [Payload(take(layout.carrier), map_leaves(take, layout.side), layout) for layout in layouts]


def message_nbytes(layouts: Sequence[Layout]) -> int:
    """The length of a message before it exists."""
    return HEADER_BYTES + sum(layout.nbytes for layout in layouts)


def _checked_body(message: Tensor, layouts: Sequence[Layout]) -> Tensor:
    if message.dtype != torch.uint8 or message.dim() != 1:
        raise PayloadError(f"payload: expected a flat uint8 tensor, got {message.dtype} of {tuple(message.shape)}.")
    if len(message) < HEADER_BYTES:
        raise PayloadError(f"payload: {len(message)} bytes cannot hold the header of {HEADER_BYTES}; it was truncated.")
    magic, version, zero, digest, length, checksum = _HEADER.unpack(bytes(message[:HEADER_BYTES].tolist()))
    if magic != b"TG":
        raise PayloadError(f"payload: it begins with {magic!r} and not with b'TG', so it is none of ours.")
    if version != VERSION:
        raise PayloadError(f"payload: format version {version}, this build reads version {VERSION}; update both ends.")
    if zero != 0:
        raise PayloadError(f"payload: the header's reserved byte is {zero} and not 0, so it was altered on the way.")
    if digest != _digest(layouts):
        expected = ", ".join(f"{layout.label} of {list(layout.spec.shape)}" for layout in layouts[:3])
        raise PayloadError(f"payload: packed by another compressor or for another tensor than the expected {expected}.")
    body, expected_bytes = message[HEADER_BYTES:], sum(layout.nbytes for layout in layouts)
    if not len(body) == length == expected_bytes:
        raise PayloadError(
            f"payload: {len(body)} bytes follow a header that announces {length}, and the layout needs "
            f"{expected_bytes}; it was truncated or extended."
        )
    if checksum != _checksum(body):
        raise PayloadError("payload: the checksum does not fit the bytes, so they were altered on the way.")
    return body


def _digest(layouts: Sequence[Layout]) -> int:
    text = ";".join(f"{layout.label}|{layout.spec.shape}|{layout.spec.dtype}" for layout in layouts)
    return zlib.crc32(text.encode())


def _checksum(body: Tensor) -> int:
    return zlib.crc32(body.cpu().contiguous().numpy().tobytes())


def _to_bytes(tensor: Tensor, spec: TensorSpec) -> Tensor:
    if spec.alphabet is not None:
        return kernels.pack(tensor, spec.alphabet)
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _from_bytes(stream: Tensor, spec: TensorSpec) -> Tensor:
    if spec.alphabet is None:
        # A copy, because a view in another type needs an aligned start.
        return stream.clone().view(spec.dtype).view(spec.shape)
    symbols = kernels.unpack(stream, spec.numel, spec.alphabet)
    if symbols.numel() and int(symbols.max()) >= spec.alphabet:
        raise PayloadError(f"payload: symbol {int(symbols.max())} outside the alphabet of {spec.alphabet}.")
    return symbols.to(spec.dtype).view(spec.shape)
