"""Broken and hostile directories, made at random: one line and a status, never a traceback."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelmeter.cli import main

#: Values that stand where another type, size or sign is expected.
STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 7, 10**6, 10**9, 2**63, 10**400, 0.5, -0.0, 1e300, 1e-300, 16, 48, 257),
    *("", "x", "\x1b[31m\n", "\ud800", "é" * 300, "../..", "WanModel", "i2v", "vace", "rms_norm_across_heads"),
    *([], [1], [1, 2, 2], [0, 1], [1] * 300, [None], [[]], {}, {"a": 1}, [True, True, True], [False], [None, None]),
]
#: Words of JSON that is none, or that says something twice.
BROKEN = [
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"9" * 6000,
    b'{"a":1,"a":2}',
    b"[" * 3000,
    b"\xff",
    b"\0",
    b"'x'",
]
#: Keys that mean something to some class.
KEYS = [
    "num_layers",
    "dim",
    "ffn_dim",
    "in_channels",
    "vace_layers",
    "patch_size",
    "image_dim",
    "boundary_ratio",
    "x\x1b",
]
FILES = ["config.json", "model_index.json", "transformer/config.json", "transformer_2/config.json", "vae/config.json"]
FILES += ["text_encoder/config.json", "image_encoder/config.json", "scheduler/scheduler_config.json"]
FILES += ["high_noise_model/config.json", "low_noise_model/config.json", "Wan2.1_VAE.pth", "transformer"]
FILES += ["model.safetensors", "transformer/m.safetensors", "vae/m.safetensors", "vae/m.safetensors.index.json"]
#: Bytes of a file that is left as it is.
LARGE = 10**6
COMMANDS = [["report"], ["report", "--format", "json"], ["report", "--format", "markdown"], ["verify", "core"]]


def strange_json(draw: random.Random, value: Any) -> bytes:
    """A JSON document with one to three things changed: a value, a key, or a piece of its text."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.randint(1, 3)):
        if isinstance(value, dict) and value and draw.random() < 0.8:
            key = draw.choice([*value, *value, draw.choice(KEYS)])
            if draw.random() < 0.15:
                value.pop(key, None)
            else:
                value[key] = draw.choice(STRANGE)
    text = json.dumps(value).encode()
    how = draw.random()
    if how < 0.12:
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice(BROKEN) + text[at + draw.randint(0, 4) :]
    elif how < 0.18:
        text = text[: draw.randrange(len(text) + 1)]
    elif how < 0.21:
        text = b"{" + text[1:-1] + b"," + text[1:]
    elif how < 0.23:
        text = b'{"a":[' + b"{}," * draw.randint(1, 400_000) + b"{}]}"
    return text


def strange_weights(draw: random.Random, make: Any) -> bytes:
    """A safetensors file that holds something else than it says, or nothing that fits."""
    dtype, shape = draw.choice(["F32", "BF16", "F8_E4M3", "I8", "x\x1b"]), draw.choice([[2], [], [3, 5], [0], [2**40]])
    name = draw.choice(["a", "x.lora_A.weight", "img_emb.x", "shared.weight", "\x1b[2J", "é" * 100])
    how = draw.randrange(7)
    if how == 0:
        return make.safetensors({name: ("F32", [2, 3])})
    if how == 1:
        return draw.randbytes(draw.randint(0, 40))
    if how == 2:
        return draw.choice([0, 5, 10**6, 10**8, 2**63, 2**64 - 1]).to_bytes(8, "little") + b"{}" * draw.randint(0, 5)
    if how == 3:
        head = strange_json(draw, {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 8]}})
        return len(head).to_bytes(8, "little") + head + bytes(8)
    if how == 4:
        head = b'{"a":[' + b"[]," * draw.randint(1, 1_300_000) + b"[]]}"
        return len(head).to_bytes(8, "little") + head
    if how == 5:
        one = '{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
        entries = ",".join(f'"t{i}":' + one % (4 * i, 4 * i + 4) for i in range(draw.randint(1, 20_000)))
        head = f"{{{entries}}}".encode()
        return len(head).to_bytes(8, "little") + head
    return b"version https://git-lfs.github.com/spec/v1\n"


def replace(draw: random.Random, path: Path, outside: Path) -> None:
    """Put something that is no file of a model where one is: a pipe, a folder, a link, a device, a hole."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    how = draw.randrange(9)
    if how == 0:
        os.mkfifo(path)
    elif how == 1:
        path.mkdir()
    elif how == 2:
        path.write_bytes(b"")
        os.truncate(path, draw.choice([10**7, 10**12]))
    elif how < 8:
        path.symlink_to(
            draw.choice([outside, outside / "config.json", "/dev/zero", "/dev/random", path.name, "nothing", ".."])
        )


def hostile(draw: random.Random, folder: Path, make: Any) -> None:
    """A directory that begins as a model and is then changed in a few places."""
    outside = make.official(folder / "outside")
    here = folder / "model"
    here.mkdir()
    base = draw.randrange(5)
    if base == 0:
        make.official(here, model_type=draw.choice(["t2v", "i2v", "flf2v", "ti2v", "vace"]))
    elif base == 1:
        make.diffusers(here, boundary_ratio=draw.choice([None, 0.5]), expand_timesteps=draw.random() < 0.3)
    elif base == 2:
        for name in ("high_noise_model", "low_noise_model"):
            make.write(here, f"{name}/config.json", make.OFFICIAL)
    elif base == 3:
        make.write(here, "config.json", make.SMALL)
    else:
        make.diffusers(here, transformer_2=["diffusers", "WanTransformer3DModel"], boundary_ratio=0.9)
        make.write(here, "transformer_2/config.json", make.SMALL)
        make.write(here, "image_encoder/config.json", make.IMAGE_ENCODER)
    for _ in range(draw.randint(1, 4)):
        found = (path for path in here.rglob("*.json") if path.is_file() and not path.is_symlink())
        files = sorted(path for path in found if path.stat().st_size < LARGE)
        how = draw.random()
        if how < 0.6 and files:
            path = draw.choice(files)
            try:
                path.write_bytes(strange_json(draw, json.loads(path.read_bytes())))
            except (ValueError, RecursionError):
                path.write_bytes(draw.randbytes(20))
        elif how < 0.8:
            names = [name for name in FILES if name.endswith(".safetensors")]
            path = here / draw.choice([*names, f"transformer/a-{draw.randint(0, 5)}-of-00003.safetensors"])
            if not path.parent.is_symlink() and (path.parent.is_dir() or not path.parent.exists()):
                path.parent.mkdir(exist_ok=True)
                if not path.is_symlink() and not path.is_dir() and not path.is_fifo():
                    path.write_bytes(strange_weights(draw, make))
        elif how < 0.97:
            path = here / draw.choice(FILES)
            if not path.parent.is_symlink() and (path.parent.is_dir() or not path.parent.exists()):
                replace(draw, path, outside)
        else:
            for i in range(draw.choice([10, 1200])):
                (here / f"\x1b{i}\udcff.{draw.choice(['bin', 'gguf', 'txt'])}").touch()


def check(seed: int, folder: Path, make: Any, run: Callable[[list[str]], tuple[object, str, str]]) -> tuple[int, str]:
    """Make the directory of a seed and ask for it: a status from 0 to 3, one printable line where it is not 0."""
    draw = random.Random(seed)
    hostile(draw, folder, make)
    command, *options = draw.choice(COMMANDS)
    place = str(folder / "model")
    arguments = [command, place, *options] if command == "report" else [command, *options, "-m", place]
    status, output, error = run(arguments)
    assert status in (0, 1, 2, 3), (seed, status)
    assert "\x1b" not in output + error, seed
    if status == 0:
        assert output, seed
    elif status >= 2:  # type: ignore[operator]
        assert error.startswith("modelmeter: "), (seed, error)
        assert error.count("\n") == 1, (seed, error)
        assert error[:-1].isprintable(), (seed, error)
    assert "Traceback" not in error, seed
    return int(status), error  # type: ignore[call-overload, no-any-return]


def in_process(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], tuple[object, str, str]]:
    """The command line in this process."""

    def run(arguments: list[str]) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        return exit.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("seed", range(100))
def test_a_hostile_directory_is_answered(
    seed: int, make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """100 broken directories end with a status and one line, or a report."""
    check(seed, tmp_path, make, in_process(capsys))


@pytest.mark.slow
def test_two_thousand_hostile_directories(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2,000 broken directories end with a status and one line, or a report; both are common."""
    found = []
    for seed in range(1000, 3000):
        place = tmp_path / str(seed)
        place.mkdir()
        found.append(check(seed, place, make, in_process(capsys))[0])
        shutil.rmtree(place)
    assert found.count(0) > 200
    assert found.count(2) > 1000
