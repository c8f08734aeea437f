"""The state that a forward may change: what a cache keeps counts, and calls that change one are never shared."""

from __future__ import annotations

import pytest

from modelmeter import nn
from modelmeter.nn import functional as F

X = nn.Tensor((2, 8), nn.float32)
BYTES = 64


class Running(nn.Module):
    """Adds what the call before kept, and keeps a copy of its input."""

    def forward(self, x: nn.Tensor, cache: nn.Cache[str]) -> nn.Tensor:
        """[...] -> [...]."""
        kept = x.clone()
        if isinstance(cache.slot, nn.Tensor):
            x = x + cache.slot
        cache.keep(kept)
        return F.exp(x)


class Chain(nn.Module):
    """Two equal modules, each with a slot of its own."""

    def __init__(self) -> None:
        self.first, self.second = Running(), Running()

    def forward(self, x: nn.Tensor, cache: nn.Cache[str] | None = None) -> tuple[nn.Tensor, nn.Cache[str]]:
        """What both return, and the cache."""
        cache = nn.Cache() if cache is None else nn.resident_cache(cache)
        x = self.first(x, cache)
        x = self.second(x, cache)
        return x, cache


def names(body: nn.Body) -> list[list[str]]:
    """Kernels of each call of the root."""
    return [[op.name for op in call.body.ops] for call in body.calls]


def test_a_call_that_changes_a_cache_runs_every_time() -> None:
    """Equal modules with equal inputs still run by what the cache holds, and each keeps its own tensor."""
    first = nn.trace(Chain(), X)
    assert names(first.body) == [["clone", "exp"], ["clone", "exp"]]
    cache = first.outputs[1]
    second = nn.trace(Chain(), X, cache)
    assert names(second.body) == [["clone", "add", "exp"]] * 2
    assert len(list(second.outputs[1].tensors)) == 2

    half_full = nn.Cache([None, cache.slots[1]])
    assert names(nn.trace(Chain(), X, half_full).body) == [["clone", "exp"], ["clone", "add", "exp"]]


def test_what_a_cache_keeps_is_alive() -> None:
    """Live bytes grow by what is kept, count what earlier forwards left, and fall when a slot is overwritten."""
    first = nn.trace(Chain(), X)
    calls = list(first.body.calls)
    assert [call.live for call in calls] == [0, 2 * BYTES]  # the copy in the first slot, and the result
    second = nn.trace(Chain(), X, first.outputs[1])
    assert [call.live for call in second.body.calls] == [2 * BYTES, 3 * BYTES]
    clone, _, exp = second.body.items[0].body.ops
    assert clone.live == BYTES  # beside the old copy, which the caller counts
    assert exp.live == 2 * BYTES  # sum and result; the new copy has taken the place of the old one


def test_a_tensor_kept_elsewhere_is_an_error() -> None:
    """Beside a cache a module may keep nothing: the bytes are missed."""
    hidden: list[nn.Tensor] = []

    class Hiding(Running):
        def forward(self, x: nn.Tensor, cache: nn.Cache[str]) -> nn.Tensor:
            """Keeps a tensor where no one looks."""
            hidden.append(x + 1.0)
            return super().forward(x, cache)

    chain = Chain()
    chain.second = Hiding()
    with pytest.raises(RuntimeError, match=f"second left {3 * BYTES} bytes alive where .* hold {2 * BYTES}"):
        nn.trace(chain, X)


def test_a_tensor_outside_a_trace_is_no_resident() -> None:
    """Only a running forward can count what is alive."""
    with pytest.raises(RuntimeError, match="outside a trace"):
        nn.resident(X)


def test_a_list_hands_a_tensor_over() -> None:
    """A module that takes a tensor out of a list frees it, where one that is given the tensor does not."""

    class Twice(nn.Module):
        def forward(self, x: nn.Tensor | list[nn.Tensor]) -> nn.Tensor:
            tensor = x.pop() if isinstance(x, list) else x
            del x
            tensor = F.exp(tensor)
            return F.exp(tensor)

    class Caller(nn.Module):
        def __init__(self, *, handed: bool) -> None:
            self.twice, self.handed = Twice(), handed

        def forward(self, x: nn.Tensor) -> nn.Tensor:
            x = F.exp(x)
            if not self.handed:
                return self.twice(x)
            given = [x]
            del x
            return self.twice(given)

    size = 4 * 6
    lives = {}
    for handed in (False, True):
        body = nn.trace(Caller(handed=handed), nn.Tensor((2, 3), nn.float32)).body
        (call,) = body.calls
        lives[handed] = [call.live + op.live for op in call.body.ops]
    assert lives == {False: [2 * size, 3 * size], True: [2 * size, 2 * size]}
