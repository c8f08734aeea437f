"""A report as plain data: the JSON document of the contract."""

from __future__ import annotations

from typing import Any

from modelmeter.estimate import CONVENTIONS, Estimate
from modelmeter.traffic import NodeTraffic, Traffic

SCHEMA = "modelmeter.report/1"


def document(estimate: Estimate) -> dict[str, Any]:
    """The JSON document of an estimate; integers stay integers.

    Example:
        >>> import modelmeter as mm
        >>> document(mm.load("wan2.1-t2v-1.3b").estimate())["schema"]
        'modelmeter.report/1'
    """
    memory = estimate.memory
    return {
        "schema": SCHEMA,
        "model": {"id": estimate.model, "source": estimate.source, "config": estimate.config},
        "workload": estimate.workload.values,
        "geometry": estimate.geometry.values,
        "conventions": list(CONVENTIONS),
        "not_modelled": list(estimate.plan.not_modelled),
        "warnings": list(estimate.warnings),
        "totals": {"flops": estimate.flops, "params": estimate.params},
        "components": [
            {"id": name, "class": kind, "params": params} for name, (kind, params) in estimate.components.items()
        ],
        "stages": [
            {"id": stage.id, "calls": stage.calls, "flops": stage.flops, "params": stage.params}
            for stage in estimate.stages
        ],
        "nodes": [
            {
                "id": node.id,
                "parent": node.parent,
                "kind": node.kind,
                "calls": node.calls,
                "flops": node.flops,
                "own_flops": node.own_flops,
                "flops_by_kind": dict(node.flops_by_kind),
                "params": node.params,
                "traffic": _traffic(estimate.traffic[node.id]),
            }
            for node in estimate.nodes
        ],
        "traffic": [row for stage in estimate.stages for row in _by_kind(stage.id, estimate.traffic[stage.id])],
        "memory": {
            "policy": memory.policy.values,
            "weights_bytes": memory.weights_bytes,
            "host_bytes": memory.host_bytes,
            "peak_bytes": memory.peak_bytes,
            "peak_node": memory.peak_node,
            "stages": [
                {
                    "id": stage.id,
                    "weights_bytes": stage.weights_bytes,
                    "activation_peak_bytes": stage.activation_peak_bytes,
                }
                for stage in memory.stages
            ],
        },
    }


def _traffic(traffic: NodeTraffic) -> dict[str, Any]:
    """What a module moves, submodules included, one kernel at a time and under fusion."""
    fused = {f"fused_{key}": value for key, value in _moved(traffic.fused).items()}
    return {
        **_moved(traffic.total),
        "flops_per_byte": traffic.intensity,
        **fused,
        "fused_flops_per_byte": traffic.fused_intensity,
    }


def _moved(traffic: Traffic) -> dict[str, Any]:
    names = ("weight_bytes_read", "activation_bytes_read", "bytes_written")
    return {name: getattr(traffic, name) for name in names}


def _by_kind(stage: str, traffic: NodeTraffic) -> list[dict[str, Any]]:
    """The sums of a stage by kind of kernel and dtype: what a prediction of time needs."""
    sums: dict[tuple[str, str], Traffic] = {}
    for key, moved in traffic.inclusive.items():
        sums[key.kind, key.dtype] = sums.get((key.kind, key.dtype), Traffic()) + moved
    return [{"stage": stage, "kind": kind, "dtype": dtype, **moved._asdict()} for (kind, dtype), moved in sums.items()]
