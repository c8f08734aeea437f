"""Every kernel of a run as plain numbers: what a kernel or hardware engineer needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from modelmeter.estimate import Estimate
from modelmeter.flops import called_paths
from modelmeter.nn import Op, Spec, evaluate
from modelmeter.stage import Forward


@dataclass(frozen=True, slots=True)
class OpRow:
    """One kernel of a module, all its equal launches together.

    Args:
        batch, m, n, k: ``batch`` products [m, k] @ [k, n]; ``None`` for kernels that multiply no matrices. In
            attention they are those of the scores; the second product is as large.
        count: launches over the whole run.
        flops, vector_flops, bytes_read, weight_bytes_read, bytes_written: of one launch; where launches grow evenly,
            on average.
    """

    stage: str
    path: str
    op: str
    kind: str
    batch: int | None
    m: int | None
    n: int | None
    k: int | None
    inputs: str
    outputs: str
    dtype: str
    count: int
    flops: int
    vector_flops: int
    bytes_read: int
    weight_bytes_read: int
    bytes_written: int


def op_rows(estimate: Estimate) -> Iterator[OpRow]:
    """The kernels of every stage, module by module, and chunk by chunk in a VAE.

    Example:
        >>> import modelmeter as mm
        >>> rows = list(op_rows(mm.load("wan2.1-t2v-1.3b").estimate()))
        >>> sum(row.count * row.flops for row in rows) == mm.load("wan2.1-t2v-1.3b").estimate().flops
        True
    """
    for run in estimate.runs:
        for forward, times, form in run.forwards:
            for path, body in called_paths(form.body):
                for op in body.ops:
                    yield _row(run.stage.id, run.stage.path(path), op, times, forward)


def _row(stage: str, path: str, op: Op, count: int, forward: Forward) -> OpRow:
    first, dims = forward.ends
    inputs = [_evaluated(spec, dims) for spec in op.inputs]
    outputs = [_evaluated(spec, dims) for spec in op.outputs]
    batch, m, n, k = _product(op.kind, inputs, outputs)
    return OpRow(
        stage=stage,
        path=path,
        op=op.name,
        kind=op.kind,
        batch=batch,
        m=m,
        n=n,
        k=k,
        inputs=" ".join(map(_shape, inputs)),
        outputs=_shape(outputs[0]),
        dtype=str(op.outputs[0].dtype),
        count=count,
        flops=evaluate(op.flops, dims),
        vector_flops=evaluate(op.vector_flops, dims),
        bytes_read=(evaluate(op.bytes_read, first) + evaluate(op.bytes_read, dims)) // 2,
        weight_bytes_read=evaluate(op.weight_bytes_read, dims),
        bytes_written=(evaluate(op.bytes_written, first) + evaluate(op.bytes_written, dims)) // 2,
    )


def _evaluated(spec: Spec, dims: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(size, dims) for size in spec.shape)


def _shape(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes)) or "scalar"


def _product(
    kind: str, inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]]
) -> tuple[int, int, int, int] | tuple[None, None, None, None]:
    """Sizes of the matrix product of a kernel."""
    if kind == "linear":  # [bias,] x, weight [out, in]
        out_features, in_features = inputs[-1]
        return 1, prod(inputs[-2]) // in_features, out_features, in_features
    if kind == "conv":  # x, weight [out, in / groups, *kernel][, bias]
        weight = inputs[1]
        return outputs[0][0], prod(outputs[0][2:]), weight[0], prod(weight[1:])
    if kind == "attention":  # query [B, H, S, E], key [B, H, L, E], ...
        query, key = inputs[0], inputs[1]
        return prod(query[:2]), query[2], key[2], query[3]
    return None, None, None, None
