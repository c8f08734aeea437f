"""What lies beside a configuration: the tensors of its weights, counted, and files that are named for what they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from modelmeter.errors import InputError, shown, with_type
from modelmeter.local.folder import Folder
from modelmeter.local.read_json import read_json
from modelmeter.local.safetensors_headers import Header, Stored, read_header

#: Longest index of shards; one of a thousand tensors has about a hundred thousand bytes.
LONGEST_INDEX = 4_000_000
#: Bytes of headers that are read in a directory.
BUDGET = 8_000_000
#: Files that only unpickling or another program would read.
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
OTHERS = {".gguf": "GGUF", ".onnx": "ONNX", ".msgpack": "Flax", ".h5": "HDF5"}
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{1,5})-of-(?P<count>\d{1,5})")
#: Parts of the names of tensors that are added to those of another file.
LORA = re.compile(r"lora[_.]?(a|b|up|down)\b|\.lora|\blora_", re.IGNORECASE)
#: One weight under two names, the second left out. Source: ``tie_word_embeddings`` of UMT5.
TIED = {"encoder.embed_tokens.weight": "shared.weight"}
#: Tensors that no forward runs: positions that older versions stored, and what stands for audio that training masks.
BUFFER = re.compile(r"(.*\.)?(position_ids|masked_spec_embed)")
#: What our dtypes are called in a header.
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
#: How a dtype of eight bits or fewer is named.
FEW_BITS = re.compile(r"F8_.*|F6_.*|F4|I8|U8")
#: Most missing files that a warning names.
MOST_NAMED = 3


@dataclass(slots=True)
class Checkpoint:
    """Tensors that belong together: one file, or the shards of one.

    Args:
        name: as it is told.
        numbers, count: which of how many numbered shards are there.
        lost: shards that an index names and that are not there.
        unread: why some of it was not read.
    """

    name: str
    count: int = 0
    tensors: dict[str, Stored] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """How many shards are not there."""
        return len(self.lost) + max(0, self.count - len(self.numbers))

    @property
    def first_missing(self) -> list[str]:
        """Names of the first of them."""
        numbered = (f"{i:05}-of-{self.count:05}" for i in range(1, self.count + 1) if i not in self.numbers)
        return [*self.lost, *islice(numbered, MOST_NAMED)][:MOST_NAMED]


@dataclass(frozen=True, slots=True)
class Weights:
    """The checkpoints of a component, and what else lies in its folder."""

    checkpoints: tuple[Checkpoint, ...]
    warnings: tuple[str, ...]
    read: int
    """Bytes of headers."""


def read_weights(folder: Folder, place: str, budget: int = BUDGET, known: Sequence[str] = ()) -> Weights:
    """What lies in the folder of a component; of weights only the headers are read.

    Args:
        place: the folder below the directory.
        budget: most bytes of headers that are read.
        known: files that are told elsewhere.

    Raises:
        InputError: a header or an index that is not what it says.
    """
    names = folder.names(place)
    prefix = "" if place == "." else f"{place}/"
    warnings = [line for name in names if name not in known for line in _foreign(prefix, name)]
    checkpoints: dict[str, Checkpoint] = {}
    stems: dict[str, str] = {}
    for name in names:
        if ".safetensors.index" in name and name.endswith(".json"):
            _index(folder, prefix, name, names, checkpoints, stems)
    read = 0
    for name in names:
        if not name.endswith(".safetensors"):
            continue
        header = read_header(folder, prefix + name, budget - read)
        if header is None:
            continue
        read += header.length
        if header.tensors and all(LORA.search(tensor) for tensor in header.tensors):
            warnings.append(f"{shown(prefix + name)}: a LoRA of {len(header.tensors):,} tensors, which is not counted")
        else:
            _add(checkpoints, stems, prefix, name, header)
    for checkpoint in checkpoints.values():
        warnings += _missing(checkpoint)
    return Weights(tuple(checkpoints.values()), tuple(warnings), read)


def differences(component: str, weights: Weights, params: int, dtypes: Sequence[str]) -> list[str]:
    """What the stored tensors have otherwise than the modelled component, one line each.

    Args:
        params: parameters of the modelled component.
        dtypes: names of the dtypes that they are modelled in.
    """
    found = []
    modelled = {DTYPES.get(dtype, dtype) for dtype in dtypes}
    for checkpoint in weights.checkpoints:
        counted = {
            name: stored
            for name, stored in checkpoint.tensors.items()
            if not BUFFER.fullmatch(name) and TIED.get(name) not in checkpoint.tensors
        }
        stored = sum(tensor.elements for tensor in counted.values())
        if counted and stored != params and not checkpoint.missing and not checkpoint.unread:
            found.append(f"{component}: {checkpoint.name} holds {stored:,} parameters; modelled are {params:,}")
        for dtype in sorted({tensor.dtype for tensor in counted.values()} - modelled):
            share = sum(tensor.elements for tensor in counted.values() if tensor.dtype == dtype)
            quantised = ", a quantised dtype," if FEW_BITS.fullmatch(dtype) else ""
            as_ours = " and ".join(sorted(modelled))
            found.append(
                f"{component}: {checkpoint.name} stores {share:,} parameters in {shown(dtype)}{quantised} "
                f"which are modelled in {as_ours}"
            )
    return found


def _foreign(prefix: str, name: str) -> list[str]:
    file = shown(prefix + name)
    if name.lower().endswith(PICKLES):
        return [f"{file}: a pickle, which is never opened"]
    return [f"{file}: {kind}, which is not read" for end, kind in OTHERS.items() if name.lower().endswith(end)]


def _index(
    folder: Folder,
    prefix: str,
    name: str,
    names: Sequence[str],
    checkpoints: dict[str, Checkpoint],
    stems: dict[str, str],
) -> None:
    """The shards of an index; ``stems`` then leads from each to its checkpoint.

    Raises:
        InputError: no map from tensors to files of the folder.
    """
    file = prefix + name
    index = read_json(folder, file, LONGEST_INDEX) or {}
    given = index.get("weight_map")
    if not isinstance(given, dict) or not all(isinstance(shard, str) for shard in given.values()):
        raise InputError(f"{file}:weight_map", with_type(given), "an object from tensors to files")
    checkpoint = checkpoints.setdefault(file, Checkpoint(shown(file)))
    for shard in dict.fromkeys(given.values()):
        if "/" in shard or not shard.endswith(".safetensors"):
            raise InputError(f"{file}:weight_map", shard, "safetensors files beside the index")
        stems[shard] = file
        if shard not in names:
            checkpoint.lost.append(shown(shard))


def _add(checkpoints: dict[str, Checkpoint], stems: Mapping[str, str], prefix: str, name: str, header: Header) -> None:
    """Add a file to its checkpoint: that of its index, of the shards with its stem, or its own."""
    shard = SHARD.fullmatch(name.removesuffix(".safetensors"))
    key = stems.get(name) or prefix + (f"{shard['stem']} of {int(shard['count'])}" if shard else name)
    told = f"{prefix}{shard['stem']}-*.safetensors" if shard else prefix + name
    checkpoint = checkpoints.setdefault(key, Checkpoint(shown(told)))
    if shard and name not in stems:
        checkpoint.count = int(shard["count"])
        checkpoint.numbers.add(int(shard["number"]))
    checkpoint.tensors |= header.tensors
    if header.unread:
        checkpoint.unread.append(f"{shown(prefix + name)}: {header.unread}")


def _missing(checkpoint: Checkpoint) -> list[str]:
    found = list(checkpoint.unread)
    if checkpoint.missing:
        more = checkpoint.missing - len(checkpoint.first_missing)
        names = ", ".join(checkpoint.first_missing) + (f" and {more:,} more" if more else "")
        found.append(f"{checkpoint.name}: missing shards: {names}")
    return found
