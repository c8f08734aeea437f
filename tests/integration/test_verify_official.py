"""The official code as a reference, on a stand-in with its layout: what agrees, and every way in which it must fail."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import modelmeter as mm
from modelmeter.cli import main
from modelmeter.compiled import compile_forward
from modelmeter.config import registry
from modelmeter.errors import InputError, UnavailableError
from modelmeter.models.wan2_2.animate import WanAnimateTransformer3DModel
from modelmeter.stage import Reference
from modelmeter.verify.official import Checkout
from modelmeter.verify.official_classes import CLASSES, official_class
from modelmeter.verify.official_names import Names, finder
from modelmeter.verify.run import verify

STAND_IN = Path(__file__).parent / "official_stand_in"
#: By repository: the files under wan/modules, and the files of the stand-in that they are.
LAYOUTS = {
    "Wan2.1": {name: name for name in ("attention", "clip", "model", "t5", "vace_model", "vae")},
    "Wan2.2": {
        **{name: name for name in ("attention", "t5", "vae2_2")},
        **{"base": "model", "model": "model_2_2", "vae2_1": "vae", "animate/clip": "clip"},
        **{f"animate/{name}": f"animate_{name}" for name in ("model_animate", "face_blocks", "motion_encoder")},
    },
}
#: Loads whole pipelines in the official code, and is not wanted here.
PACKAGE = "raise RuntimeError('this loads whole pipelines')\n"
SMALL = [
    *("transformer.num_layers=2", "transformer.dim=256", "transformer.num_heads=2", "transformer.ffn_dim=512"),
    *("text_encoder.vocab_size=100", "text_encoder.num_layers=2", "text_encoder.d_model=64", "text_encoder.d_ff=96"),
    *("text_encoder.num_heads=2", "text_encoder.d_kv=24", "vae.base_dim=8", "vae.decoder_base_dim=8"),
]
SMALL_IMAGES = [
    *("image_encoder.num_hidden_layers=3", "image_encoder.intermediate_size=640"),
    *("image_encoder.image_size=28", "image_encoder.num_attention_heads=4"),
]
#: By model what makes it small; the widths of images are written into the official classes.
MODELS = {
    "wan2.1-t2v-1.3b": SMALL,
    "wan2.1-i2v-14b-480p": [*SMALL, *SMALL_IMAGES],
    "wan2.1-flf2v-14b": [*SMALL, *SMALL_IMAGES],
    "wan2.1-vace-1.3b": [*SMALL, "transformer.vace_layers=[0,1]", "num_reference_images=1"],
    "wan2.2-t2v-a14b": SMALL,
    "wan2.2-i2v-a14b": SMALL,
    "wan2.2-ti2v-5b": [*SMALL, "task=i2v"],
}


MATH = "import math\n"
IMPORTED = "it cannot be imported"
BUILT = "{0} cannot be built: TypeError: {0}.__init__() got an unexpected keyword argument '{1}'"


def repository_of(model: str) -> str:
    """Where the official code of a model is."""
    return "Wan2.1" if model.startswith("wan2.1") else "Wan2.2"


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[[str], Path]:
    """Lays the stand-in out as a checkout of a repository."""

    def lay_out(repository: str) -> Path:
        modules = tmp_path / repository / "wan" / "modules"
        (modules / "animate").mkdir(parents=True)
        for package in (modules, modules.parent, modules / "animate"):
            (package / "__init__.py").write_text(PACKAGE)
        for name, source in LAYOUTS[repository].items():
            text = (STAND_IN / f"{source}.py").read_text()
            (modules / name).parent.mkdir(exist_ok=True)
            # what lies in a directory of its own imports from the one above
            (modules / f"{name}.py").write_text(
                text.replace("from .attention", "from ..attention") if "clip" in name and "/" in name else text
            )
        return tmp_path / repository

    return lay_out


def edit(path: Path, file: str, old: str, new: str) -> Path:
    """Change a file of a checkout."""
    source = path / "wan" / "modules" / file
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new))
    return path


def verify_small(path: Path | None, model: str = "wan2.1-t2v-1.3b", *kinds: str, **options: Any) -> Any:
    """A small model against a checkout, on the smallest sizes."""
    small = [*MODELS[model], "height=64", "width=64", "num_frames=9"]
    options = {"workload": "wan2-1-512p", "reference": "official", **options}
    return verify([mm.load(model, *small)], kinds or ("layers",), official_path=path and str(path), **options)


def run(*arguments: str) -> int:
    """Exit status of the command line in this process."""
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert isinstance(exit.value.code, int)
    return exit.value.code


@pytest.mark.parametrize("model", MODELS)
def test_every_module_of_every_model_is_equal(model: str, checkout: Callable[[str], Path]) -> None:
    """FLOPs of all modules that run and parameters of all modules are those of the official layout, by name."""
    result = verify_small(checkout(repository_of(model)), model)
    assert result.failures == ()
    assert {check.reference for check in result.checks} == {"official"}


@pytest.mark.parametrize("model", MODELS)
def test_rows_are_those_of_diffusers(model: str, checkout: Callable[[str], Path]) -> None:
    """Under our names the official numbers are, row by row, those of the diffusers and transformers classes."""
    # the diffusers classes are built to run what the official code does, such as 31 layers of CLIP
    official = verify_small(checkout(repository_of(model)), model)
    diffusers = verify_small(None, model, reference="diffusers")
    numbers = [{(row.id, row.quantity): row.reference for row in result.rows} for result in (official, diffusers)]
    assert numbers[0] == numbers[1]
    named = mm.load(model, *MODELS[model]).components["transformer"].named_modules()
    assert {f"transformer.{path}".rstrip(".") for path, _ in named} == {
        row.id for row in official.rows if row.stage == "transformer" and row.quantity == "params"
    }


ANIMATE_DIMS = {
    "batch": 1,
    "frames": 4,
    "rows": 4,
    "columns": 6,
    "text_len": 512,
    "image_tokens": 257,
    "face_frames": 9,
}


def test_animate_is_equal(checkout: Callable[[str], Path]) -> None:
    """The official class of Animate, whose keys and values are one layer, has the numbers of every module here."""
    sizes = {"ffn_dim": 96, "num_layers": 10, "in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 64}
    ours = WanAnimateTransformer3DModel(num_attention_heads=2, attention_head_dim=32, **sizes)
    vendor = {"patch_size": (1, 2, 2), "in_dim": 36, "out_dim": 16, "dim": 64, "num_heads": 2, "ffn_dim": 96}
    reference = Reference(
        "wan.modules.animate.model_animate", "WanAnimateModel", {**vendor, "num_layers": 10}, repository="Wan2.2"
    )
    code = Checkout(checkout("Wan2.2"), "Wan2.2", [reference])
    flops = compile_forward(ours, ANIMATE_DIMS).module_flops(ANIMATE_DIMS)
    params = {path: module.params for path, module in ours.named_modules()}
    module = code.build(reference)
    measured = code.measure(reference, module, ours.inputs(**ANIMATE_DIMS), 1, called=flops, named=params)
    assert measured.unknown == measured.uncounted_ops == ()
    assert measured.flops == flops
    assert measured.params == params
    assert flops["face_adapter.1.to_k"] > 0


@pytest.mark.parametrize("model", ["wan2.1-flf2v-14b", "wan2.2-i2v-a14b", "wan2.2-ti2v-5b"])
def test_whole_runs_and_more_than_one_video_are_equal(model: str, checkout: Callable[[str], Path]) -> None:
    """Whole runs agree, looped too, and so do two videos at once, which the official classes take as lists."""
    path = checkout(repository_of(model))
    small = [*MODELS[model], "height=64", "width=64", "num_frames=9", "batch_size=2"]
    result = verify(
        [mm.load(model, *small)], ("layers",), workload="wan2-1-512p", reference="official", official_path=str(path)
    )
    assert result.failures == ()
    assert verify_small(path, model, "end2end", loop="short").failures == ()


def test_the_command_compares_full_size(checkout: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The command verifies transformer, T5 and VAE at full size on meta, at a text length other than the default."""
    words = ["--reference", "official", "--official-path", str(checkout("Wan2.1")), "--format", "json"]
    assert run("verify", "layers", "-m", "wan2.1-t2v-1.3b", "-w", "wan2-1-ci-tiny", *words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"]
    assert document["reference"] == "official"
    assert document["max_rel_diff"] == 0
    assert document["compared_nonzero"] > 2000
    assert document["versions"]["Wan2.1"] == "of unknown revision"


def test_full_size_is_what_was_measured(checkout: Callable[[str], Path]) -> None:
    """At full size the stand-in counts what FlopCounterMode measured on the official classes at 480x832."""
    result = verify(
        [mm.load("wan2.1-i2v-14b-480p")],
        ("layers",),
        workload="official-480p",
        reference="official",
        official_path=str(checkout("Wan2.1")),
    )
    assert result.failures == ()
    totals = {row.stage: row.reference for row in result.rows if row.id == row.stage and row.quantity == "flops"}
    assert totals == {
        "text_encoder": 4_844_723_109_888,
        "image_encoder": 324_143_836_160,
        "vae_encode": 163_749_702_205_440,
        "transformer": 1_686_376_373_944_320,
        "vae_decode": 275_352_205_639_680,
    }


@pytest.mark.slow
@pytest.mark.parametrize("repository", LAYOUTS)
def test_all_models_of_a_repository_at_full_size(repository: str, checkout: Callable[[str], Path]) -> None:
    """Without a model every model of the repository is verified at every preset; the others are listed."""
    models = [mm.load(entry.id) for entry in registry()]
    result = verify(models, ("layers",), reference="official", official_path=str(checkout(repository)))
    assert result.failures == ()
    own = {
        model.id
        for model in models
        for kinds in model.pipeline.references(model.config).values()
        if "official" in kinds and kinds["official"].repository == repository
    }
    assert {row.model for row in result.rows} == own
    assert len(own) >= 3


def test_models_of_the_other_repository_are_listed(checkout: Callable[[str], Path]) -> None:
    """Of several models those run whose code the checkout has, and the others are said not to be."""
    models = [mm.load(model, *MODELS[model]) for model in ("wan2.1-t2v-1.3b", "wan2.2-t2v-a14b")]
    path = str(checkout("Wan2.2"))
    result = verify(models, ("layers",), workload="wan2-1-ci-tiny", reference="official", official_path=path)
    assert result.failures == ()
    assert {row.model for row in result.rows} == {"wan2.2-t2v-a14b"}
    assert result.not_applicable == ("wan2.1-t2v-1.3b: no model of Wan2.2",)


def test_a_tiled_vae_has_no_official_class(checkout: Callable[[str], Path]) -> None:
    """Tiles are diffusers' own: the stages are listed as without a reference, and the others are compared."""
    model = mm.load("wan2.1-t2v-1.3b", *SMALL, "vae_tiling=true")
    path = str(checkout("Wan2.1"))
    result = verify([model], ("layers",), workload="wan2-1-ci-tiny", reference="official", official_path=path)
    assert result.failures == ()
    assert {row.stage for row in result.rows} == {"text_encoder", "transformer"}
    assert result.not_applicable == ("wan2.1-t2v-1.3b vae_decode: no reference of the kind official",)


def test_the_commit_is_told(checkout: Callable[[str], Path]) -> None:
    """The commit of the checkout stands among the versions, on a branch or not."""
    path = checkout("Wan2.1")
    git = path / ".git"
    (git / "refs").mkdir(parents=True)
    (git / "refs" / "main").write_text("0123456789abcdef\n")
    for head in ("0123456789abcdef\n", "ref: refs/main\n"):
        (git / "HEAD").write_text(head)
        assert Checkout(path, "Wan2.1", []).revision == "0123456"


# -- what must fail ----------------------------------------------------------------------------------------------


def test_a_layer_of_another_width_is_named(checkout: Callable[[str], Path]) -> None:
    """A linear layer that is wider fails by its name here, with both numbers."""
    old, new = "nn.Linear(dim, ffn_dim)", "nn.Linear(dim, ffn_dim + 8)"
    path = edit(checkout("Wan2.1"), "model.py", old, new)
    edit(path, "model.py", "nn.Linear(ffn_dim, dim)", "nn.Linear(ffn_dim + 8, dim)")
    result = verify_small(path)
    assert not result.passed
    node = "transformer.blocks.0.ffn.net.0.proj: flops analytic 12,582,912, reference 12,779,520"
    assert any(node in line for line in result.failures), result.failures
    assert any("transformer.blocks.1.ffn.net.2: params" in line for line in result.failures)
    assert not any("attn" in line for line in result.failures)


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("model.py", "self.q", "self.query", "transformer: blocks.0.self_attn.query"),
        ("model.py", "self.ffn", "self.mlp", "transformer: blocks.1.mlp.0"),
        ("model.py", "self.self_attn", "self.attention", "transformer: blocks.0.attention"),
        ("model.py", "self.text_embedding", "self.prompt", "transformer: prompt.2"),
        ("t5.py", "self.fc1", "self.up", "text_encoder: blocks.0.ffn.up"),
        ("vae.py", "self.time_conv", "self.frames", "vae_decode: decoder.upsamples.3.frames"),
        ("vae.py", "self.middle", "self.mid", "vae_decode: decoder.mid.0.residual.2"),
    ],
)
def test_a_renamed_module_is_named(
    file: str, old: str, new: str, named: str, checkout: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A module that is called otherwise is one that no table has, and fails under its own name."""
    path = edit(checkout("Wan2.1"), file, old, new)
    words = ["--reference", "official", "--official-path", str(path), "-w", "wan2-1-ci-tiny"]
    assert run("verify", "layers", "-m", "wan2.1-t2v-1.3b", *words, *SMALL) == 1
    assert f"missing: wan2.1-t2v-1.3b wan2-1-ci-tiny {named}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("        x = x + self.cross_attn(", "        self.more(x)\n        x = x + self.cross_attn("),
        ("        assert e.dtype", "        assert e.dtype"),
    ],
    ids=["runs", "holds weights"],
)
def test_a_module_that_nothing_here_has_is_named(old: str, new: str, checkout: Callable[[str], Path]) -> None:
    """A further module in the official code fails, whether it runs or only holds weights."""
    path = edit(checkout("Wan2.1"), "model.py", old, new)
    edit(path, "model.py", "        self.norm2 =", "        self.more = nn.Linear(dim, 8)\n        self.norm2 =")
    result = verify_small(path)
    assert (
        "missing: wan2.1-t2v-1.3b wan2-1-512p transformer: blocks.0.more, which the reference runs" in result.failures
    )


def test_a_module_that_is_not_there_is_named(checkout: Callable[[str], Path]) -> None:
    """A module that the official code lacks has no number there, which no number here equals."""
    path = edit(checkout("Wan2.1"), "model.py", "            nn.Linear(in_dim, in_dim),\n            nn.GELU(),\n", "")
    edit(
        path,
        "model.py",
        "            nn.Linear(in_dim, out_dim),",
        "            nn.GELU(),\n" * 2 + "nn.Linear(in_dim, out_dim),",
    )
    result = verify_small(path, "wan2.1-i2v-14b-480p")
    assert any("condition_embedder.image_embedder.ff.net.0.proj: flops" in line for line in result.failures)


def test_a_timestep_that_is_not_given_to_every_token_is_named(checkout: Callable[[str], Path]) -> None:
    """The class of Wan2.2 itself has to give the timestep of a video to all its tokens, as its pipelines rely on."""
    path = edit(checkout("Wan2.2"), "model.py", "t = t.expand(t.size(0), seq_len)", "t, seq_len = t[:, None], 1")
    result = verify_small(path, "wan2.2-t2v-a14b")
    assert any("transformer.condition_embedder.time_proj: flops" in line for line in result.failures)


def test_a_layer_that_runs_once_more_is_named(checkout: Callable[[str], Path]) -> None:
    """The last layer of CLIP, which does not run here, fails if the official code runs it."""
    path = edit(checkout("Wan2.1"), "clip.py", "self.transformer[:-1](x)", "self.transformer(x)")
    result = verify_small(path, "wan2.1-i2v-14b-480p")
    assert any("image_encoder.encoder.layers.2.self_attn.q_proj, which" in line for line in result.failures)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("model.py", "class WanModel(", "class Transformer(", "it has no WanModel"),
        ("t5.py", "def umt5_xxl(", "def umt5(", "it has no umt5_xxl"),
        ("model.py", "        qk_norm=True,\n        cross", "        cross", BUILT.format("WanModel", "qk_norm")),
        ("t5.py", "encoder_only=False, ", "", "umt5_xxl cannot be built: "),
        ("vae.py", "temperal_downsample=(True", "downsample=(True", BUILT.format("WanVAE_", "temperal_downsample")),
        ("vae.py", "def decode(self, z, scale)", "def decode(self, z)", "WanVAE_ cannot be called: TypeError"),
        ("model.py", "x, t, context, seq_len,", "x, t, context, length,", "WanModel cannot be called: TypeError"),
        ("model.py", "x = flash_attention(\n", "x = gpu_attention(\n", "WanModel cannot be called: NameError"),
        ("model.py", MATH, "import no_such_package\n", "it needs package no_such_package, which is not installed"),
        ("model.py", MATH, "from . import no_such_module\n", f"{IMPORTED}: ImportError: cannot import"),
        ("model.py", MATH, "from .no_such_module import x\n", f"{IMPORTED}: ModuleNotFoundError: No module"),
        ("model.py", MATH, "1 +\n", f"{IMPORTED}: SyntaxError"),
        ("model.py", MATH, "raise SystemExit(0)\n", f"{IMPORTED}: SystemExit: 0"),
        (
            "model.py",
            "        x, given =",
            "        raise SystemExit(0)\n        x, given =",
            "WanModel cannot be called: Sys",
        ),
    ],
)
def test_another_layout_is_one_line(
    file: str, old: str, new: str, said: str, checkout: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not where or as the official code has it ends with status 3 and a line that names it."""
    path = edit(checkout("Wan2.1"), file, old, new)
    words = ["--reference", "official", "--official-path", str(path), "-w", "wan2-1-ci-tiny"]
    assert run("verify", "layers", "-m", "wan2.1-t2v-1.3b", *words, *SMALL) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("modelmeter: official-path=")
    assert f"wan/modules/{file}: {said}" in err
    assert err.count("\n") == 1


def test_attention_that_is_not_there_is_named(checkout: Callable[[str], Path]) -> None:
    """An attention of another name cannot be imported, and the line says so."""
    path = edit(checkout("Wan2.1"), "attention.py", "def flash_attention(", "def attention(")
    with pytest.raises(UnavailableError, match="model.py: it cannot be imported: ImportError: .* 'flash_attention'"):
        verify_small(path)


def test_attention_that_cannot_be_replaced_is_refused(checkout: Callable[[str], Path]) -> None:
    """Without a ``flash_attention`` in its place nothing says that what runs instead is counted."""
    path = checkout("Wan2.1")
    edit(path, "model.py", "from .attention import flash_attention", "flash_attention = None")
    with pytest.raises(UnavailableError, match=r"model.py: wan.modules.attention has no flash_attention$"):
        verify_small(path)


@pytest.mark.parametrize("file", ["model", "t5", "vae", "clip"])
def test_a_missing_file_is_refused_before_anything_runs(
    file: str, checkout: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that the model needs and the checkout lacks ends with status 3 and how to get one."""
    path = checkout("Wan2.1")
    (path / "wan" / "modules" / f"{file}.py").unlink()
    words = ["--reference", "official", "--official-path", str(path), "-w", "official-480p"]
    assert run("verify", "layers", "-m", "wan2.1-i2v-14b-480p", *words) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert f"wan/modules/{file}.py" in line
    assert line.endswith("get it with: git clone https://github.com/Wan-Video/Wan2.1")


@pytest.mark.parametrize(
    ("model", "path", "status", "said"),
    [
        ("wan2.1-t2v-1.3b", None, 3, "--official-path has to name a checkout; get it with: git clone https://github.com/Wan-Video/Wan2.1"),
        ("wan2.2-ti2v-5b", None, 3, "--official-path has to name a checkout; get it with: git clone https://github.com/Wan-Video/Wan2.2"),
        ("wan2.1-t2v-1.3b", "Wan2.2", 3, "it has no wan/modules/vae.py; get it with: git clone https://github.com/Wan-Video/Wan2.1"),
        ("wan2.2-ti2v-5b", "nowhere", 3, "it has no wan/modules/vae2_2.py; get it with: git clone https://github.com/Wan-Video/Wan2.2"),
        (None, "nowhere", 3, "or git clone https://github.com/Wan-Video/Wan2.2"),
        ("wan2.1-t2v-1.3b", "", 2, "official-path=: allowed is the directory of a checkout"),
    ],
)  # fmt: skip
def test_a_path_without_the_code_says_how_to_get_it(
    model: str | None,
    path: str | None,
    status: int,
    said: str,
    checkout: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a path, or with one where no such code is, the line ends with the command that gets it."""
    directory = checkout("Wan2.2").parent
    words = [] if path is None else ["--official-path", str(directory / path) if path else ""]
    which = ["-m", model] if model else []
    assert run("verify", "layers", *which, "-w", "official-480p", "--reference", "official", *words) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(said)


def test_words_that_do_not_go_together_are_bad_input(checkout: Callable[[str], Path]) -> None:
    """A path without the reference that it is for, or a device other than meta, is refused."""
    path = checkout("Wan2.1")
    for reference in (None, "diffusers", "modules"):
        with pytest.raises(InputError, match="official-path=.*: allowed is only with --reference official"):
            verify_small(path, reference=reference)
    with pytest.raises(InputError, match="device=cpu: allowed is meta with --reference official"):
        verify_small(path, device="cpu")


def test_a_model_without_official_classes_is_bad_input(checkout: Callable[[str], Path]) -> None:
    """A model whose vendor's code has no table here is refused by name, with a checkout or without."""
    for path in (str(checkout("Wan2.1")), None):
        with pytest.raises(InputError, match="^reference=official: allowed is another kind for ltx-video-2b$"):
            verify([mm.load("ltx-video-2b")], ("layers",), reference="official", official_path=path)


# -- what a run leaves behind ------------------------------------------------------------------------------------


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package of the user that is called as the official one is: it and all that is imported stay as they are."""
    own = ModuleType("wan")
    monkeypatch.setitem(sys.modules, "wan", own)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # as it is unless the environment says otherwise
    path, stdout = list(sys.path), sys.stdout
    yield own
    assert [name for name in sys.modules if name.partition(".")[0] == "wan"] == ["wan"]
    assert sys.modules["wan"] is own
    assert sys.path == path
    assert not sys.dont_write_bytecode
    assert sys.stdout is stdout


def test_nothing_of_the_checkout_is_left(checkout: Callable[[str], Path], untouched: ModuleType) -> None:
    """After a run its modules are gone, its path is nowhere, and nothing was written to it."""
    path = checkout("Wan2.1")
    (path / "beside.py").write_text("")
    edit(
        path,
        "model.py",
        "import math\n",
        f"import math\nimport sys\nsys.path.insert(0, {str(path)!r})\nimport beside\n",
    )
    before = sorted(path.rglob("*"))
    assert verify_small(path).passed
    assert "beside" not in sys.modules
    assert sorted(path.rglob("*")) == before


ATTENTION_IN_TWO_PLACES = ("wan.modules.attention", "wan.modules.model")


@pytest.mark.parametrize("fails", [False, True])
def test_attention_is_the_official_one_again(
    fails: bool, checkout: Callable[[str], Path], untouched: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a forward, and after one that raises, every module has its own ``flash_attention`` again."""
    path = checkout("Wan2.1")
    if fails:
        edit(
            path, "model.py", "x = flash_attention(\n", "raise RuntimeError('two\\nlines')\n        flash_attention(\n"
        )
    seen: list[Checkout] = []
    start = Checkout.__init__

    def noted(self: Checkout, *arguments: Any) -> None:
        seen.append(self)
        start(self, *arguments)

    monkeypatch.setattr(Checkout, "__init__", noted)
    if fails:
        with pytest.raises(UnavailableError, match="WanModel cannot be called: RuntimeError: two lines$"):
            verify_small(path)
    else:
        assert verify_small(path).passed
    for name in ATTENTION_IN_TWO_PLACES:
        assert seen[0]._modules[name].flash_attention.__module__ == "wan.modules.attention"


def test_code_is_run_on_request_only(checkout: Callable[[str], Path], tmp_path: Path) -> None:
    """Nothing at the path is imported for another reference, nor where the words do not go together."""
    path = checkout("Wan2.1")
    ran = tmp_path / "ran"
    edit(path, "attention.py", "def flash", f"open({str(ran)!r}, 'w').close()\n\n\ndef flash")
    with pytest.raises(InputError):
        verify_small(path, reference="diffusers")
    assert verify_small(None, reference="diffusers").passed
    assert verify_small(None, reference=None).passed
    with pytest.raises(InputError):
        verify_small(path, device="cpu")
    assert not ran.exists()
    assert verify_small(path).passed
    assert ran.exists()


def test_what_the_code_prints_and_warns_stays_out_of_the_answer(
    checkout: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Text that the official code prints goes to standard error, so that the document is one."""
    path = edit(checkout("Wan2.1"), "model.py", "import math\n", "import math\nprint('loaded')\n")
    words = ["--reference", "official", "--official-path", str(path), "--format", "json", "-w", "wan2-1-ci-tiny"]
    assert run("verify", "layers", "-m", "wan2.1-t2v-1.3b", *words, *SMALL) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["passed"]
    assert err == "loaded\n"


# -- the tables --------------------------------------------------------------------------------------------------


def test_no_name_stands_there_for_nothing(checkout: Callable[[str], Path]) -> None:
    """Every line of every table is used by a model, and what it answers for is a module here."""
    used: dict[tuple[str, str], set[str]] = {}
    tables: dict[tuple[str, str], Names] = {}
    paths = {repository: checkout(repository) for repository in LAYOUTS}
    for model_id, small in MODELS.items():
        model = mm.load(model_id, *small)
        code = Checkout(paths[repository_of(model_id)], repository_of(model_id), [])
        for stage, kinds in model.pipeline.references(model.config).items():
            reference = kinds["official"]
            table = official_class(reference).names(reference)
            module = code.build(reference)
            names = [*dict(module.named_modules()), *dict(module.named_parameters())]
            names.remove("")  # the root, which every table has
            ours = dict(model.components["vae" if stage.startswith("vae") else stage].named_modules())
            for pattern, answer in table.items():
                find = finder({pattern: answer})
                for path in names:
                    with suppress(KeyError):
                        for each in re.split(" [+&] ", find(path) or ""):
                            assert each in ours, (path, each)
                        used.setdefault((reference.package, reference.name), set()).add(pattern)
            tables[reference.package, reference.name] = table
    # by their last names, since tables are put together: an attention to the video itself has no images
    found, there = ({name.rpartition(".")[2] for names in each.values() for name in names} for each in (used, tables))
    assert found == there


def test_every_official_class_can_be_run() -> None:
    """Every official class that a model names has a call and a table, and none stands there for nothing."""
    named = {
        (reference.package, reference.name)
        for entry in registry()
        for model in [mm.load(entry.id)]
        for kinds in model.pipeline.references(model.config).values()
        for kind, reference in kinds.items()
        if kind == "official"
    }
    animate = {key for key in CLASSES if "animate" in key[0]}  # has a test of its own
    assert named | animate == set(CLASSES)
