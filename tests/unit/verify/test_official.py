"""Attention that stands in for the official function, and tables of names."""

import torch
from torch.nn import functional

from modelmeter.verify.official import flash_attention
from modelmeter.verify.official_names import finder, renamed


def test_keys_are_cut_and_queries_are_not() -> None:
    """Every video attends to its own number of keys, with all its queries."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 3, 4), torch.randn(2, 7, 3, 4), torch.randn(2, 7, 3, 4)
    found = flash_attention(q, k, v, k_lens=torch.tensor([7, 2]), window_size=(-1, -1))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = torch.arange(7)[None, None, None, :] < torch.tensor([7, 2])[:, None, None, None]
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    whole = flash_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(whole, functional.scaled_dot_product_attention(q, k, v))


def test_numbers_are_added_up_along_our_paths() -> None:
    """A number counts for its path and all above it; parts that do not divide still add up to the whole."""
    names = {"q.*": "a.*.b + a.*.c + a.*.d", "e": "x & y.z", "gone": None}
    found = renamed({"q.7": 10, "e": 5, "gone": 3, "": 1, "zero": 0, "new.1": 2}, names)
    assert found.inclusive == {
        **{"": 18, "a": 10, "a.7": 10, "a.7.b": 3, "a.7.c": 3, "a.7.d": 4},
        **{"x": 5, "y": 5, "y.z": 5},
    }
    assert found.unknown == ("new.1",)
    assert found.answered == {"", "a.7.b", "a.7.c", "a.7.d", "x", "y.z"}
    assert found.at(["a", "other"])["other"] == 0


def test_a_star_is_a_number() -> None:
    """A table's star is no name, no two levels, and not any character; a dot is a dot."""
    find = finder({"blocks.*.q": "b.*.to_q"})
    assert find("blocks.12.q") == "b.12.to_q"
    for path in ("blocks.x.q", "blocks.1.2.q", "blocks.1xq", "blocks.1.q.w", "blocks..q"):
        try:
            find(path)
        except KeyError:
            continue
        raise AssertionError(path)
