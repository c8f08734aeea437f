"""The bytes of weights: what a component's parameters take in storage, module by module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from modelmeter.nn import Linear, Module, Parameter
from modelmeter.policy import Format


def stored_bytes(weight: Parameter, format: Format | None = None) -> int:
    """Bytes of one tensor of weights: elements of its dtype, or blocks of a format, each row rounded up to whole ones.

    Example:
        >>> from modelmeter.nn import bfloat16
        >>> from modelmeter.policy import FORMATS
        >>> stored_bytes(Parameter((8, 256), bfloat16)), stored_bytes(Parameter((8, 256), bfloat16), FORMATS["q4_k"])
        (4096, 1152)
    """
    shape = _shape(weight)
    if format is None:
        return prod(shape) * weight.dtype.itemsize
    rows, columns = shape
    row = columns + format.block_bytes if format.block == 0 else -(-columns // format.block) * format.block_bytes
    return rows * row + format.matrix_bytes


def in_blocks(component: Module) -> dict[str, Linear]:
    """The linear layers inside the lists of blocks of a transformer, by path."""
    return {
        path: module
        for path, module in component.named_modules()
        if isinstance(module, Linear) and block_of(path) is not None
    }


#: A block in a list of blocks, at the top of a component or one level below.
BLOCK = re.compile(r"((?:\w+\.)?\w*blocks?\.\d+)(?:\.|$)")


def block_of(path: str) -> str | None:
    """The block that a path is in: ``blocks.3`` of ``blocks.3.ffn.net.0``.

    Example:
        >>> block_of("vace_blocks.0.attn1.to_q"), block_of("encoder.block.7"), block_of("condition_embedder.time_proj")
        ('vace_blocks.0', 'encoder.block.7', None)
    """
    found = BLOCK.match(path)
    return found[1] if found else None


def weight_sizes(component: Module, format: Format | None, lora_rank: int) -> dict[int, int]:
    """Bytes of each tensor of weights by its identity, those of an adapter with the matrix that it adapts.

    Args:
        format: of the matrices of the linear layers inside blocks; all else keeps its dtype.
        lora_rank: of adapters beside those layers, in their dtype; 0 for none.
    """
    matrices = {id(layer.weight) for layer in in_blocks(component).values()} if format or lora_rank else set()
    sizes = {}
    for _, weight in component.named_parameters():
        matrix = id(weight) in matrices
        adapter = lora_rank * sum(_shape(weight)) * weight.dtype.itemsize if matrix else 0
        sizes[id(weight)] = stored_bytes(weight, format if matrix else None) + adapter
    return sizes


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a loaded component.

    Args:
        by_module: bytes of each module itself, by path; what modules share counts with the first.
        by_node: bytes of each module and all below it, by path.
        blocks: bytes of each block, by path.
        params_outside: parameters outside the blocks.
        params_in_block: parameters of the largest block.
        largest_matrix: bytes of the largest linear layer in the blocks as it runs; 0 where nothing is quantised.
        idle: bytes of what is loaded with the component and never runs.
    """

    by_module: Mapping[str, int]
    by_node: Mapping[str, int]
    blocks: Mapping[str, int]
    params_outside: int
    params_in_block: int
    largest_matrix: int
    idle: int

    @property
    def total(self) -> int:
        """Bytes of all that is loaded."""
        return sum(self.by_module.values()) + self.idle


def weights(
    component: Module,
    format: Format | None = None,
    *,
    lora_rank: int = 0,
    idle: int = 0,
) -> Weights:
    """The weights of a component, adapters included.

    Args:
        format: of the matrices of the linear layers inside blocks; all else keeps its dtype.
        lora_rank: of adapters beside those layers; 0 for none.
        idle: bytes of what is loaded with the component and never runs.

    Example:
        >>> from modelmeter.models.wan2_1.transformer import Wan2_1DiTModel
        >>> len(weights(Wan2_1DiTModel(num_layers=3)).blocks)
        3
    """
    sizes = weight_sizes(component, format, lora_rank)
    by_module: dict[str, int] = {}
    blocks: dict[str, int] = {}
    params: dict[str | None, int] = {None: 0}
    for path, weight in component.named_parameters():
        module, block = path.rpartition(".")[0], block_of(path)
        by_module[module] = by_module.get(module, 0) + sizes[id(weight)]
        params[block] = params.get(block, 0) + prod(_shape(weight))
        if block is not None:
            blocks[block] = blocks.get(block, 0) + sizes[id(weight)]
    matrices = (stored_bytes(layer.weight) for layer in in_blocks(component).values()) if format else ()
    outside = params.pop(None)
    return Weights(
        by_module,
        _by_node(component, sizes),
        blocks,
        outside,
        max(params.values(), default=0),
        max(matrices, default=0),
        idle,
    )


def _by_node(component: Module, sizes: Mapping[int, int]) -> dict[str, int]:
    """Bytes of every module with all below it; what modules share counts once in each that holds it."""
    held: dict[str, set[int]] = {}
    for path, module in reversed([*component.named_modules()]):  # children before their parents
        held.setdefault(path, set()).update(id(weight) for weight in module.own_weights())
        if path:
            held.setdefault(path.rpartition(".")[0], set()).update(held[path])
    return {path: sum(sizes[weight] for weight in weights) for path, weights in held.items()}


def _shape(weight: Parameter) -> tuple[int, ...]:
    assert all(isinstance(size, int) for size in weight.shape)  # weights have the shape of the configuration
    return tuple(size for size in weight.shape if isinstance(size, int))
