"""Workloads: bounds, rounding and geometry."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.errors import InputError
from modelmeter.workload import BOUNDS, COMMON_KEYS, MODEL_KEYS, Grid, Workload, round_frames, workload

TINY = {"num_frames": 5, "height": 64, "width": 64, "num_inference_steps": 1}
GRID = Grid(temporal_stride=4, spatial_stride=8, patch_size=(1, 2, 2), max_positions=1024)


@pytest.mark.parametrize("key", sorted(set(BOUNDS) & set(COMMON_KEYS)))
@pytest.mark.parametrize(
    "value", [0, -1, 1.5, 1e2, True, None, "81", float("nan"), float("inf"), 10**400, [1], "9" * 400]
)
def test_integer_keys_refuse_everything_but_integers_in_bounds(key: str, value: Any) -> None:
    """Zero, negatives, fractions, floats, booleans, texts and absurd sizes are refused, naming key and value."""
    with pytest.raises(InputError, match=f"^{key}=.*an integer from 1 to") as error:
        workload({**TINY, key: value})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("key", ["guidance_scale", "flow_shift"])
@pytest.mark.parametrize(
    "value", [0, -1.0, 1000.5, float("nan"), float("inf"), -float("inf"), True, "5", None, 10**400]
)
def test_decimal_keys_refuse_what_is_not_finite_and_positive(key: str, value: Any) -> None:
    """Zero, negatives, too large, infinite and undefined numbers, booleans and texts are refused."""
    if (key, value) == ("flow_shift", None):
        assert workload({**TINY, key: value}).flow_shift is None
        return
    with pytest.raises(InputError, match=f"^{key}="):
        workload({**TINY, key: value})


@pytest.mark.parametrize(("key", "bounds"), BOUNDS.items())
def test_bounds_are_inclusive(key: str, bounds: tuple[int, int]) -> None:
    """The smallest and the largest value of a key are accepted, their neighbours outside are not."""
    own = {key: bounds[0]} if key in MODEL_KEYS else {}
    for value in bounds:
        assert getattr(workload({**TINY, key: value}, own), key) == value
    for value in (bounds[0] - 1, bounds[1] + 1):
        with pytest.raises(InputError, match=f"nearest: {bounds[0] if value < bounds[0] else bounds[1]}"):
            workload({**TINY, key: value}, own)


def test_keys_of_some_models_are_unknown_to_the_others() -> None:
    """What only some models take is refused by name, and checked where a model takes it."""
    with pytest.raises(InputError, match="^workload key=num_reference_images"):
        workload({**TINY, "num_reference_images": 1})
    own = {"num_reference_images": 0, "task": "t2v"}
    assert workload(TINY, own).values["num_reference_images"] == 0
    for key, value in (
        ("num_reference_images", 1.0),
        ("num_reference_images", "1"),
        ("task", "v2v"),
        ("task", ["t2v"]),
    ):
        with pytest.raises(InputError, match=f"^{key}="):
            workload({**TINY, key: value}, own)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("480", "'480' (str)"),
        (480.0, "480.0 (float)"),
        (None, "None (NoneType)"),
        (numpy.float32(480), f"{numpy.float32(480)!r} (float32)"),
        (numpy.array([480]), "array([480]) (ndarray)"),
        (numpy.bool_(True), f"{numpy.bool_(True)!r} ({numpy.bool_.__name__})"),
        (Fraction(480), "Fraction(480, 1) (Fraction)"),
        ("x" * 400, f"'{'x' * 50}... (str)"),
    ],
)
def test_a_value_of_another_type_is_shown_with_its_type(value: Any, text: str) -> None:
    """What reads like a number and is none says what it is, in one short line."""
    with pytest.raises(InputError) as error:
        workload({**TINY, "height": value})
    assert str(error.value) == f"height={text}: allowed is an integer from 1 to 65,536"


@pytest.mark.parametrize("value", ["5", None, True, Decimal(5), complex(5), [5], numpy.array([5.0])])
def test_a_decimal_of_another_type_is_shown_with_its_type(value: Any) -> None:
    """What is no real number is refused as a scale, with its type."""
    with pytest.raises(InputError, match=rf"^guidance_scale=.* \({type(value).__name__}\): allowed is a decimal"):
        workload({**TINY, "guidance_scale": value})


@pytest.mark.parametrize("value", [numpy.int64(64), numpy.uint8(64), numpy.array(64)])
def test_integers_of_other_libraries_become_plain(value: Any) -> None:
    """Whatever stands for an integer is kept as one of Python's."""
    assert type(workload({**TINY, "height": value}).height) is int
    assert workload({**TINY, "height": value}).height == 64


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (numpy.float32(2.5), float),
        (numpy.float64(2.5), float),
        (Fraction(5, 2), float),
        (numpy.int64(3), int),
        (3, int),
    ],
)
def test_decimals_of_other_libraries_become_plain(value: Any, kept: type) -> None:
    """Whatever stands for a real number is kept as one of Python's, an integer as an integer."""
    scale = workload({**TINY, "guidance_scale": value}).guidance_scale
    assert type(scale) is kept
    assert scale == value


@pytest.mark.parametrize("value", [Fraction(10**400), Fraction(10**400, 3), numpy.float32("inf"), 10**400])
def test_a_number_past_all_decimals_is_refused(value: Any) -> None:
    """What no decimal can hold is out of bounds like any other large number."""
    with pytest.raises(InputError, match="^guidance_scale=.*at most 1000"):
        workload({**TINY, "guidance_scale": value})


def test_unknown_and_missing_keys_are_named() -> None:
    """A mistyped key is answered with the nearest one, a missing one with its name."""
    with pytest.raises(InputError, match="nearest: num_frames"):
        workload({**TINY, "numframes": 3})
    with pytest.raises(InputError, match="^width=nothing"):
        workload({key: value for key, value in TINY.items() if key != "width"})


@pytest.mark.parametrize(("scale", "passes"), [(1, 1), (1.0, 1), (0.5, 1), (1.001, 2), (5, 2)])
def test_guidance_runs_two_forwards_above_one(scale: float, passes: int) -> None:
    """A guidance scale above 1 means two forwards a step, else one."""
    assert workload({**TINY, "guidance_scale": scale}).guidance_passes == passes


@pytest.mark.parametrize(
    ("frames", "runs", "decoded"),
    [(16, 17, 13), (80, 81, 77), (82, 81, 81), (83, 81, 81), (84, 85, 81), (4, 5, 1)],
)
def test_frames_round_as_each_implementation_does(frames: int, runs: int, decoded: int) -> None:
    """diffusers rounds the count up or down before it runs; the official code runs fewer latents and decodes less.

    Source of the counts: diffusers ``WanPipeline.__call__`` (``num_frames // 4 * 4 + 1``) and the official
    latent size ``(F - 1) // 4 + 1``.
    """
    video = workload({**TINY, "num_frames": frames})
    rounded, notes = round_frames(video, "rounded")
    assert rounded.num_frames == runs
    assert str(runs) in notes[0]
    same, notes = round_frames(video, "kept")
    assert same == video
    assert f"{decoded} frame" in notes[0]


@given(st.integers(0, 1000))
def test_whole_counts_are_not_rounded(quarter: int) -> None:
    """4 n + 1 frames run as they are, without a warning, under both implementations."""
    video = workload({**TINY, "num_frames": 4 * quarter + 1})
    assert round_frames(video, "rounded") == (video, [])
    assert round_frames(video, "kept") == (video, [])


@pytest.mark.parametrize(("height", "nearest"), [(481, "480 or 496"), (8, "16"), (727, "720 or 736")])
def test_sides_that_do_not_divide_name_the_nearest(height: int, nearest: str) -> None:
    """A side that is no multiple of stride x patch is refused with the sizes below and above."""
    with pytest.raises(InputError, match=f"^height={height}: allowed is a multiple of 16 .* nearest: {nearest}$"):
        GRID.geometry(workload({**TINY, "height": height}))


def test_more_positions_than_the_model_has_are_refused() -> None:
    """An axis with more tokens than the rotary table has rows is refused, at the edge and not before."""
    assert GRID.geometry(workload({**TINY, "width": 16384})).latent_width == 2048
    with pytest.raises(InputError, match="at most 1024 tokens"):
        GRID.geometry(workload({**TINY, "width": 16400}))
    assert GRID.geometry(workload({**TINY, "num_frames": 4093})).latent_frames == 1024
    with pytest.raises(InputError, match="^num_frames=4097"):
        GRID.geometry(workload({**TINY, "num_frames": 4097}))


def test_a_grid_without_a_table_has_no_most_positions() -> None:
    """A model that computes its positions takes any size that divides."""
    grid = Grid(temporal_stride=8, spatial_stride=32, patch_size=(1, 1, 1))
    geometry = grid.geometry(workload({**TINY, "num_frames": 80001, "height": 65536, "width": 65536}))
    assert (geometry.latent_frames, geometry.latent_height) == (10001, 2048)


def test_a_rounded_count_names_the_stride() -> None:
    """Where the decoder gives fewer frames, the warning says of which stride the count is a multiple."""
    _, (note,) = round_frames(workload({**TINY, "num_frames": 16}), "kept", 8)
    assert note == "num_frames=16: the decoder gives 9 frames (a multiple of 8, plus 1)"


def test_a_workload_is_a_value() -> None:
    """Workloads compare by value and cannot be changed."""
    assert Workload(**TINY) == Workload(**TINY)
    with pytest.raises(AttributeError):
        Workload(**TINY).height = 3  # type: ignore[misc]
