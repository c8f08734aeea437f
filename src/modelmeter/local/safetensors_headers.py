"""Headers of safetensors files: names, dtypes and shapes of the tensors. The tensors themselves are never read.

Source: the format's own description, github.com/huggingface/safetensors: 8 bytes with the length of the header,
little-endian, then the header as JSON, then the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from modelmeter.errors import InputError, shown, with_type
from modelmeter.local.folder import Folder
from modelmeter.local.read_json import parsed

#: Longest header of the format. Source: ``MAX_HEADER_SIZE`` of safetensors.
LONGEST_HEADER = 100_000_000
#: Longest header that is read; one of a thousand tensors has about a hundred thousand bytes.
LONGEST_READ = 4_000_000
LENGTH_BYTES = 8
#: How the text begins that stands for a file whose content was not fetched.
LFS_POINTER = b"version https://git-lfs"
#: Bits of an element. Source: ``Dtype`` of safetensors.
BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
#: Most dimensions of a tensor.
MOST_DIMENSIONS = 16


class Stored(NamedTuple):
    """A tensor in a file."""

    dtype: str
    elements: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says, or why it was not read."""

    tensors: Mapping[str, Stored]
    length: int
    unread: str | None = None


def read_header(folder: Folder, file: str, budget: int) -> Header | None:
    """The header of a safetensors file; ``None`` where nothing has that name.

    Args:
        budget: most bytes of header that are read.

    Raises:
        InputError: a header that does not fit its file, or its tensors.
    """
    size = folder.size(file)
    start = folder.start(file, LENGTH_BYTES + len(LFS_POINTER))
    if size is None or start is None:
        return None
    if start.startswith(LFS_POINTER):
        return Header({}, 0, "a pointer of git-lfs, not the weights")
    if size < LENGTH_BYTES:
        raise InputError(file, f"{size} bytes", "a safetensors file, which begins with the length of its header")
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length > min(LONGEST_HEADER, size - LENGTH_BYTES):
        allowed = f"one that fits the file of {size:,} bytes and is at most {LONGEST_HEADER:,} bytes long"
        raise InputError(f"{file} header", f"{length:,} bytes", allowed)
    if length > min(LONGEST_READ, budget):
        return Header({}, 0, f"not read, since its header has {length:,} bytes")
    data = folder.start(file, LENGTH_BYTES + length) or b""
    if len(data) < LENGTH_BYTES + length:
        raise InputError(f"{file} header", f"{length:,} bytes", "one that can be read whole")
    found = parsed(f"{file} header", data[LENGTH_BYTES:])
    found.pop("__metadata__", None)
    stored = {name: _tensor(file, name, value) for name, value in found.items()}
    end = max((value["data_offsets"][1] for value in found.values()), default=0)
    there = size - LENGTH_BYTES - length
    cut = f"cut short: {there:,} of {end:,} bytes of tensors" if end > there else None
    return Header(stored, length, cut)


def _tensor(file: str, name: str, value: Any) -> Stored:
    """A tensor whose bytes are those of its dtype and shape.

    Raises:
        InputError: they are not, or it is described otherwise.
    """
    field = f"{file} {shown(name)}"
    if not isinstance(value, dict) or not value.keys() >= {"dtype", "shape", "data_offsets"}:
        raise InputError(field, with_type(value), "dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str):
        raise InputError(field, with_type(dtype), "the name of a dtype")
    if not _sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise InputError(field, with_type(shape), "a shape of few sizes from 0 up")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InputError(field, with_type(offsets), "two offsets, the first not above the second")
    elements = prod(shape)
    if dtype in BITS and (offsets[1] - offsets[0]) * 8 != elements * BITS[dtype]:
        raise InputError(field, f"{offsets[1] - offsets[0]:,} bytes", f"{elements:,} elements of {dtype}")
    return Stored(dtype, elements)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
