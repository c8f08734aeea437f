"""A report as plain data: the JSON document of the contract."""

from __future__ import annotations

from typing import Any

from modelmeter.estimate import CONVENTIONS, Estimate

SCHEMA = "modelmeter.report/1"


def document(estimate: Estimate) -> dict[str, Any]:
    """The JSON document of an estimate; integers stay integers.

    Example:
        >>> import modelmeter as mm
        >>> document(mm.load("wan2.1-t2v-1.3b").estimate())["schema"]
        'modelmeter.report/1'
    """
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
            }
            for node in estimate.nodes
        ],
    }
