"""What strangers wrote: bounded, inside the directory, never waited on, never run."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import modelmeter as mm
from modelmeter.local import folder as folders
from modelmeter.local import safetensors_headers as headers
from modelmeter.local.read_json import DEEPEST, LONGEST_CONFIG, parsed


def refused(path: Path) -> str:
    """The one line with which a directory is refused."""
    with pytest.raises(mm.InputError) as caught:
        mm.load(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


def warned(path: Path) -> list[str]:
    """What a report warns of, but for layout and absences; weights in the dtypes of diffusers."""
    warnings = mm.load(path, "implementation=diffusers").warnings[1:]
    assert all(line.isprintable() for line in warnings)
    return [line for line in warnings if " is not modelled: " not in line]


# -- JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[]", "list: allowed is a JSON object"),
        (b"null", "NoneType"),
        (b'{"dim": 1, "dim": 2}', "config.json:dim=twice"),
        (b'{"a": {"\x1b": 1, "\x1b": 2}}', "Invalid control character"),
        (b'{"a": {"\\u001b": 1, "\\u001b": 2}}', "config.json:\\x1b=twice"),
        (b'{"eps": NaN}', "config.json=NaN: allowed is a JSON object of finite numbers"),
        (b'{"eps": -Infinity}', "-Infinity"),
        (b'{"eps": 1e999}', "1e999"),
        (b'{"dim": ' + b"9" * 5000 + b"}", "finite numbers"),
        (b'{"dim": "\xff"}', "not UTF-8"),
        ('{"dim": 1}'.encode("utf-16"), "not UTF-8"),
        (b"[" * 100_000, "deeply nested"),
        (b'{"a":' + b"[" * DEEPEST + b"]" * DEEPEST + b"}", "deeply nested"),
    ],
)
def test_json_that_is_none_is_refused(data: bytes, why: str) -> None:
    """Broken, doubled, endless or deep JSON is refused in one line that says why."""
    with pytest.raises(mm.InputError) as caught:
        parsed("config.json", data)
    assert why in str(caught.value)
    assert str(caught.value).isprintable()


def test_json_of_ordinary_depth_is_read() -> None:
    """One level less than is refused is read, with a mark of the byte order before it."""
    data = b'\xef\xbb\xbf{"a":' + b"[" * (DEEPEST - 1) + b"]" * (DEEPEST - 1) + b"}"
    assert list(parsed("config.json", data)) == ["a"]


def test_a_configuration_has_bounded_size(make: Any, tmp_path: Path) -> None:
    """A file above the bound is refused by its size, without being read: sparse files of any size too."""
    make.write(tmp_path, "config.json", json.dumps({**make.OFFICIAL, "x": "y" * LONGEST_CONFIG}))
    assert "config.json=1,000," in refused(tmp_path)
    os.truncate(tmp_path / "config.json", 10**12)
    assert refused(tmp_path).startswith("config.json=1,000,000,000,000 bytes: allowed is JSON of at most 1,000,000")


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["transformer/config.json", "model_index.json", "vae/config.json"])
def test_links_that_leave_the_directory_are_refused(file: str, make: Any, tmp_path: Path) -> None:
    """A link out of the directory is refused, of a file and of a folder; one inside it is followed."""
    outside = make.diffusers(tmp_path / "outside")
    inside = make.diffusers(tmp_path / "inside")
    (inside / file).rename(inside / "kept")
    (inside / file).symlink_to(inside / "kept")
    assert mm.load(inside).not_modelled == ()
    (inside / file).unlink()
    (inside / file).symlink_to(outside / file)
    assert refused(inside).startswith(f"{file}=a link to {outside}"[:60])
    (inside / file).unlink()
    (inside / file).symlink_to("nothing")
    assert refused(inside) == f"{file}=a link to nothing: allowed is a file"
    (inside / file).unlink()
    (inside / file).symlink_to(Path(file).name)
    assert "loop" in refused(inside) or "levels of symbolic links" in refused(inside)
    if "/" in file:
        (inside / file).unlink()
        folder = (inside / file).parent
        folder.rmdir()
        folder.symlink_to(outside / folder.name)
        assert "a link to" in refused(inside)


def test_a_snapshot_of_the_hub_links_to_its_blobs(make: Any, tmp_path: Path) -> None:
    """In a cache of Hugging Face files are links to blobs beside the snapshots: they are read, and nothing else."""
    repository = tmp_path / "models--me--mine"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    make.write(repository, "blobs/1", make.OFFICIAL)
    make.write(repository, "other/1", make.OFFICIAL)
    (snapshot / "config.json").symlink_to("../../blobs/1")
    assert mm.load(snapshot).config["local"]["layout"] == "official"
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../other/1")
    assert "a link to" in refused(snapshot)


@pytest.mark.parametrize("file", ["config.json", "diffusion_pytorch_model.safetensors", "Wan2.1_VAE.pth"])
@pytest.mark.parametrize("kind", ["pipe", "directory", "socket"])
def test_special_files_are_refused_and_not_waited_on(
    file: str, kind: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody writes to, a socket and a directory are refused where a file should be."""
    make.official(tmp_path)
    (tmp_path / file).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(tmp_path / file)
    elif kind == "directory":
        (tmp_path / file).mkdir()
    else:
        monkeypatch.chdir(tmp_path)  # the name of a socket is short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(file)
    assert refused(tmp_path).startswith(f"{file}=a {kind}: allowed is a regular file")


def test_a_device_is_refused(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device is not opened, even where it lies below the directory."""
    make.official(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to("/dev/zero")
    assert "a link to /dev/zero" in refused(tmp_path)
    place = folders.Folder(Path("/dev"), (Path("/dev"),))
    with pytest.raises(mm.InputError, match="^zero=a device: allowed is a regular file"):
        place.start("zero", 10)


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_on(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that appears after the look at a file is opened without waiting, and refused."""
    make.official(tmp_path)
    real = folders.Folder._regular

    def swap(self: folders.Folder, file: str, path: Path) -> os.stat_result:
        found = real(self, file, path) if path.is_file() else os.stat(path)
        path.unlink()
        os.mkfifo(path)
        return found

    monkeypatch.setattr(folders.Folder, "_regular", swap)
    with pytest.raises(mm.InputError, match=r"no regular file|a pipe"):
        folders.open_folder(str(tmp_path)).start("config.json", 10)


def test_a_folder_has_bounded_entries(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of more files than any model has is refused."""
    monkeypatch.setattr(folders, "MOST_ENTRIES", 20)
    make.official(tmp_path)
    for i in range(19):
        make.write(tmp_path, f"file {i}", b"")
    assert warned(tmp_path) == []
    make.write(tmp_path, "one more", b"")
    assert "more than 20 files" in refused(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_refused(make: Any, tmp_path: Path) -> None:
    """What the user may not read is said by name."""
    make.official(tmp_path)
    (tmp_path / "config.json").chmod(0)
    assert refused(tmp_path).startswith("config.json=Permission denied")


def test_nothing_of_a_directory_is_run(make: Any, tmp_path: Path) -> None:
    """No file of the directory is imported or unpickled, whatever its configuration asks for."""
    make.diffusers(tmp_path, transformer=["transformer", "WanTransformer3DModel"], auto_map={"AutoModel": "evil.Evil"})
    evil = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for name in ("transformer.py", "evil.py", "sitecustomize.py", "modelmeter.py", "json.py", "conftest.py"):
        make.write(tmp_path, name, evil)
        make.write(tmp_path, f"transformer/{name}", evil)
    pickle = b"cbuiltins\nexec\n(V" + evil.encode() + b"\ntR."
    make.write(tmp_path, "transformer/diffusion_pytorch_model.bin", pickle)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "from modelmeter.cli import main; main(['report', '.'])"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "diffusion_pytorch_model.bin: a pickle, which is never opened" in done.stdout
    assert not (tmp_path / "ran").exists()


# -- headers of weights ------------------------------------------------------------------------------------------

FILE = "diffusion_pytorch_model.safetensors"


def header(data: bytes, length: int | None = None) -> bytes:
    """A file that begins with a length and a header."""
    return (len(data) if length is None else length).to_bytes(8, "little") + data


TENSOR = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "0 bytes"),
        (b"1234567", "7 bytes"),
        (header(b"{}", 3), "header=3 bytes"),
        (header(b"{}", 2**64 - 1), "header=18,446,744,073,709,551,615 bytes"),
        (header(b"{}", 100_000_001), "header=100,000,001 bytes"),
        (header(b"[]"), "allowed is a JSON object"),
        (header(b"{" * 5000), "Expecting property name"),
        (header(f'{{"a": {TENSOR}, "a": {TENSOR}}}'.encode()) + bytes(8), "header:a=twice"),
        (header(b'{"a": 1}'), "dtype, shape and data_offsets"),
        (header(TENSOR.replace("[2]", "[-2]").join(('{"a":', "}")).encode()), "a shape of few sizes"),
        (header(TENSOR.replace("[2]", "[2.0]").join(('{"a":', "}")).encode()), "a shape of few sizes"),
        (header(TENSOR.replace("[2]", "[9007199254740993]").join(('{"a":', "}")).encode()), "8 bytes"),
        (header(TENSOR.replace("[2]", str([1] * 99)).join(('{"a":', "}")).encode()), "a shape of few sizes"),
        (header(TENSOR.replace("[0, 8]", "[8, 0]").join(('{"a":', "}")).encode()), "two offsets"),
        (
            header(TENSOR.replace("[0, 8]", "[0, 9]").join(('{"a":', "}")).encode()),
            "9 bytes: allowed is 2 elements of F32",
        ),
        (header(TENSOR.replace('"F32"', "32").join(('{"a":', "}")).encode()), "the name of a dtype"),
    ],
)
def test_headers_that_lie_are_refused(data: bytes, why: str, make: Any, tmp_path: Path) -> None:
    """A header that does not fit its file, its JSON or its tensors is refused in one line."""
    make.official(tmp_path)
    make.write(tmp_path, FILE, data)
    line = refused(tmp_path)
    assert why in line
    assert line.startswith(FILE)


def test_headers_are_held_against_the_configuration(make: Any, tmp_path: Path) -> None:
    """Weights with the parameters and dtypes of the model raise no warning; others say what they hold."""
    make.diffusers(tmp_path)
    module = mm.load(tmp_path, "implementation=diffusers").components["transformer"]
    names = {"bfloat16": "BF16", "float32": "F32"}
    right = {name: (names[w.dtype.name], list(w.shape)) for name, w in module.named_parameters()}
    assert len(right) > 20

    def warnings(tensors: dict[str, Any]) -> list[str]:
        head = make.safetensors({name: ("F32", shape) for name, (_, shape) in tensors.items()}, data=False)
        for kind in ("BF16",):
            head = head if kind not in {dtype for dtype, _ in tensors.values()} else mixed(tensors)
        make.write(tmp_path, f"transformer/{FILE}", head)
        return warned(tmp_path)

    def mixed(tensors: dict[str, Any]) -> bytes:
        at, described = 0, {}
        for name, (dtype, shape) in tensors.items():
            size = {"BF16": 2, "F32": 4, "F16": 2, "F8_E4M3": 1}[dtype]
            for side in shape:
                size *= side
            described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
            at += size
        data = json.dumps(described).encode()
        return header(data) + bytes(at)

    assert warnings(right) == []
    more = {**right, "more": ("BF16", [3, 5])}
    assert warnings(more) == [
        f"transformer: transformer/{FILE} holds {module.params + 15:,} parameters; modelled are {module.params:,}"
    ]
    first = next(iter(right))
    few_bits = {**right, first: ("F8_E4M3", right[first][1])}
    (line,) = warnings(few_bits)
    assert "parameters in F8_E4M3, a quantised dtype, which are modelled in BF16 and F32" in line


def test_tied_weights_and_positions_are_not_counted_twice(make: Any, tmp_path: Path) -> None:
    """The table of UMT5 under its second name, and stored positions, are no further parameters."""
    make.diffusers(tmp_path)
    module = mm.load(tmp_path).components["text_encoder"]
    tensors = {name: ("F32", list(w.shape)) for name, w in module.named_parameters()}
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    tensors["embeddings.position_ids"] = ("I32", [7])
    make.write(tmp_path, "text_encoder/model.safetensors", make.safetensors(tensors))
    assert [line for line in warned(tmp_path) if "holds" in line] == []
    tensors["other.weight"] = tensors["shared.weight"]
    make.write(tmp_path, "text_encoder/model.safetensors", make.safetensors(tensors))
    assert [line for line in warned(tmp_path) if "holds" in line] != []


def test_files_are_named_for_what_they_are(make: Any, tmp_path: Path) -> None:
    """A LoRA, missing shards, pickles, GGUF, pointers and cut files are told, and the report goes on."""
    make.diffusers(tmp_path)
    part = make.safetensors({"a": ("F32", [2])})
    make.write(tmp_path, "transformer/part-00002-of-00004.safetensors", part)
    make.write(
        tmp_path, "vae/index.safetensors.index.json", {"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}
    )
    make.write(tmp_path, "vae/x.safetensors", part)
    make.write(tmp_path, "text_encoder/model.safetensors", part[:-3])
    make.write(tmp_path, "text_encoder/lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    make.write(
        tmp_path,
        "lora.safetensors",
        make.safetensors({"x.lora_A.weight": ("F32", [2]), "x.lora_B.weight": ("F32", [1])}),
    )
    make.write(tmp_path, "transformer/model-Q4_K_M.gguf", b"GGUF")
    make.write(tmp_path, "vae/model\x1b.bin", b"")
    assert sorted(warned(tmp_path)) == [
        "lora.safetensors: a LoRA of 2 tensors, which is not counted",
        "text_encoder/lfs.safetensors: a pointer of git-lfs, not the weights",
        "text_encoder/model.safetensors: cut short: 5 of 8 bytes of tensors",
        "text_encoder: text_encoder/model.safetensors stores 2 parameters in F32 which are modelled in BF16",
        "transformer/model-Q4_K_M.gguf: GGUF, which is not read",
        "transformer/part-*.safetensors: missing shards: 00001-of-00004, 00003-of-00004, 00004-of-00004",
        "vae/index.safetensors.index.json: missing shards: y.safetensors",
        "vae/model\\x1b.bin: a pickle, which is never opened",
    ]


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "x.bin", "a/b.safetensors", 3])
def test_an_index_names_files_beside_it(shard: object, make: Any, tmp_path: Path) -> None:
    """Shards elsewhere, or that are no safetensors, are refused."""
    make.diffusers(tmp_path)
    make.write(tmp_path, "vae/model.safetensors.index.json", {"weight_map": {"a": shard}})
    assert refused(tmp_path).startswith("vae/model.safetensors.index.json:weight_map=")


def test_long_headers_are_not_read(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a bound for one header, and for all headers of a directory, they are left out with a warning."""
    make.diffusers(tmp_path)
    data = make.safetensors({"a" * 300: ("F32", [2])})
    length = int.from_bytes(data[:8], "little")
    make.write(tmp_path, f"vae/{FILE}", data)
    assert any("holds 2 parameters" in line for line in warned(tmp_path))
    monkeypatch.setattr(headers, "LONGEST_READ", length - 1)
    assert warned(tmp_path) == [f"vae/{FILE}: not read, since its header has {length} bytes"]
