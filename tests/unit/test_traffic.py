"""The traffic fold: laws between its sums, and the bytes of a block in closed form."""

from __future__ import annotations

import json

import pytest

import modelmeter as mm
from modelmeter.nn import Buffer, Linear, Module, Parameter, Tensor, float32, functional, int64, trace
from modelmeter.ops import op_rows
from modelmeter.report.document import document
from modelmeter.traffic import Traffic, overall, total_traffic

DIFFUSERS = "implementation=diffusers"
MODELS = ["wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p", "wan2.1-vace-1.3b", "wan2.2-ti2v-5b"]


@pytest.fixture(params=MODELS)
def estimate(request: pytest.FixtureRequest) -> mm.Estimate:
    """A model at a workload of several chunks."""
    return mm.load(request.param, DIFFUSERS).estimate(num_frames=17, height=256, width=320, num_inference_steps=3)


def test_what_modules_move_adds_up(estimate: mm.Estimate) -> None:
    """A stage moves what its modules move themselves, and a node what its own kernels and its children move."""
    for stage in estimate.stages:
        below = [path for path in estimate.traffic if path.split(".")[0] == stage.id]
        own = sum((overall(estimate.traffic[path].own) for path in below), start=Traffic())
        assert own == estimate.traffic[stage.id].total
        assert own.bytes_moved > 0
    for node in estimate.nodes:
        children = [estimate.traffic[child.id].total for child in estimate.nodes if child.parent == node.id]
        traffic = estimate.traffic[node.id]
        assert sum(children, start=overall(traffic.own)) == traffic.total


def test_traffic_counts_the_flops_of_the_nodes(estimate: mm.Estimate) -> None:
    """FLOPs by kind of every node are those that the FLOPs fold counts."""
    for node in estimate.nodes:
        sums = estimate.traffic[node.id].inclusive
        kinds = {key.kind for key in sums}
        by_kind = {kind: flops for kind in kinds if (flops := overall(sums, [kind]).flops)}
        assert by_kind == node.flops_by_kind


def test_the_kernels_of_a_run_move_its_traffic(estimate: mm.Estimate) -> None:
    """What the list of kernels reads and writes is the traffic, chunks that grow from one to the next included."""
    rows = list(op_rows(estimate))
    for stage in estimate.stages:
        total = estimate.traffic[stage.id].total
        own = [row for row in rows if row.stage == stage.id]
        assert sum(row.count for row in own) == total.kernels
        assert sum(row.count * row.bytes_read for row in own) == total.bytes_read
        assert sum(row.count * row.weight_bytes_read for row in own) == total.weight_bytes_read
        assert sum(row.count * row.bytes_written for row in own) == total.bytes_written


def test_fusion_leaves_what_multiplies_matrices(estimate: mm.Estimate) -> None:
    """Under fusion all FLOPs remain and less is moved, by matrix products, convolutions and attention alone."""
    for stage in estimate.stages:
        traffic = estimate.traffic[stage.id]
        fused, total = traffic.fused, traffic.total
        assert fused.flops == total.flops > 0
        assert 0 < fused.weight_bytes_read <= total.weight_bytes_read
        assert 0 < fused.activation_bytes_read < total.activation_bytes_read
        # by their FLOPs, not by the kinds that the fold goes by
        rows = [row for row in op_rows(estimate) if row.stage == stage.id and row.flops]
        assert sum(row.count * row.bytes_written for row in rows) == fused.bytes_written < total.bytes_written
        assert traffic.intensity is not None
        assert traffic.fused_intensity is not None
        assert traffic.fused_intensity > traffic.intensity == total.flops / total.bytes_moved


def test_a_forward_reads_every_weight_once() -> None:
    """Of the text encoder one forward reads all weights but the vocabulary, of which only the words of the prompt."""
    model = mm.load("wan2.1-t2v-1.3b")
    stage = model.estimate(guidance_scale=1, text_len=512)
    encoder = model.components["text_encoder"]
    vocabulary = 256_384 * 4096
    (calls,) = {s.calls for s in stage.stages if s.id == "text_encoder"}
    read = stage.traffic["text_encoder"].total.weight_bytes_read // calls
    # besides, every layer gathers its biases by the position of words to each other: 64 heads of 512 x 512
    gathered = 2 * 512 * 4096 + 24 * 2 * 64 * 512 * 512 - 24 * 2 * 32 * 64
    assert read == 2 * (encoder.params - vocabulary) + gathered


@pytest.mark.parametrize(("frames", "height", "width"), [(17, 256, 256), (81, 480, 832), (5, 320, 176)])
@pytest.mark.parametrize("name", ["wan2.1-t2v-1.3b", "wan2.1-t2v-14b"])
def test_a_block_moves_what_was_measured(name: str, frames: int, height: int, width: int) -> None:
    """Bytes of a block in bfloat16 are the closed forms measured on the class of diffusers 0.42.1 with torch 2.13."""
    model = mm.load(name, DIFFUSERS)
    estimate = model.estimate(
        num_frames=frames, height=height, width=width, num_inference_steps=1, guidance_scale=1, text_len=512
    )
    S, L = estimate.geometry.tokens, 512
    D, F = model.config["transformer"]["dim"], model.config["transformer"]["ffn_dim"]
    total = estimate.traffic["transformer.blocks.0"].total
    read = 146 * S * D + 4 * S * F + 2048 * S + 10 * L * D + 16 * D * D + 4 * D * F + 126 * D + 2 * F
    assert total.bytes_read == read
    assert 16 * total.bytes_written == 16 * (132 * S * D + 4 * S * F + 36 * S + 6 * L * D + 4 * L + 56 * D + 48) + S * D


def test_views_of_weights_are_weights() -> None:
    """A slice of a table and a constant are read as weights, what is made of them is not."""

    class Several(Module):
        def __init__(self) -> None:
            self.table = Parameter((2, 8), float32)
            self.positions = Buffer((4,), int64)
            self.layer = Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            gathered = functional.embedding(self.positions, self.table)
            return self.layer(x + self.table[:1].unsqueeze(0)) + gathered

    sums = total_traffic(trace(Several(), Tensor((3, 4, 8), float32)).body)
    weights = {(key.op, traffic.weight_bytes_read, traffic.activation_bytes_read) for key, traffic in sums.items()}
    # the sum of x and a row, then of two activations; 8 x 8 weights and 8 biases; 4 rows of 8 and 4 indices
    assert weights == {
        ("add", 4 * 8, 4 * (96 + 96 + 32)),
        ("addmm", 4 * 72, 4 * 96),
        ("embedding", 4 * 32 + 8 * 4, 0),
    }


def test_the_document_tells_what_moves(estimate: mm.Estimate) -> None:
    """JSON has the traffic of every node, and of every stage by kind and dtype, which add up to it."""
    parsed = json.loads(json.dumps(document(estimate)))
    assert [node["id"] for node in parsed["nodes"]] == list(estimate.traffic)
    for node in parsed["nodes"]:
        total = estimate.traffic[node["id"]].total
        assert node["traffic"]["bytes_written"] == total.bytes_written
        assert node["traffic"]["weight_bytes_read"] + node["traffic"]["activation_bytes_read"] == total.bytes_read
    for stage in estimate.stages:
        rows = [row for row in parsed["traffic"] if row["stage"] == stage.id]
        assert sum(row["flops"] for row in rows) == stage.flops
        assert sum(row["bytes_written"] for row in rows) == estimate.traffic[stage.id].total.bytes_written
        assert len({(row["kind"], row["dtype"]) for row in rows}) == len(rows) > 3
