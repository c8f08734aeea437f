"""The vendor's own code as a reference: a checkout of Wan2.1 or Wan2.2 at a path that the user gives.

Nothing is imported from that path unless a run asks for it. Of the checkout only the module that holds a class
and what that imports are run: the packages around it stand in without their ``__init__``, which would load whole
pipelines. Afterwards none of its modules is left, nothing has been written beside them, and its
``flash_attention``, which PyTorch's scaled dot-product attention replaces while it runs, is its own again.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch

from modelmeter.errors import UnavailableError, shown
from modelmeter.nn import Tensor
from modelmeter.stage import Reference
from modelmeter.verify.flop_counter import count
from modelmeter.verify.official_classes import official_class
from modelmeter.verify.official_names import renamed
from modelmeter.verify.reference import Measured, arguments

#: The package of the official code, and its module with the attention that all of it uses.
PACKAGE, ATTENTION = "wan", "wan.modules.attention"
#: Its function, and that of the package flash-attn which the face adapter of Animate calls itself.
KERNELS = ("flash_attention", "flash_attn_func")
#: By repository a file that the others do not have.
LAYOUT = {"Wan2.1": "wan/modules/vae.py", "Wan2.2": "wan/modules/vae2_2.py"}
#: Longest message of a foreign error that is repeated.
LONGEST_REASON = 200


class Checkout:
    """The official code at a path, imported as it is needed.

    Args:
        path: of the repository, which holds ``wan``.
        repository: which of the vendor's it is.
        references: what a run will ask of it.

    Raises:
        UnavailableError: a module is not there.
    """

    def __init__(self, path: Path, repository: str, references: Iterable[Reference]) -> None:
        self.path = path.resolve()
        self.repository = repository
        self._modules: dict[str, ModuleType] = {}
        for reference in references:
            if not (self.path / file_of(reference)).is_file():
                self._unavailable(reference, f"no such file; {how_to_get([repository])}")

    @property
    def revision(self) -> str:
        """The first digits of the commit that is checked out, where the repository says so in plain text."""
        git = self.path / ".git"
        try:
            head = (git / "HEAD").read_text(encoding="ascii").strip()
            commit = (
                (git / head.removeprefix("ref: ")).read_text(encoding="ascii") if head.startswith("ref: ") else head
            )
        except (OSError, ValueError):
            return "of unknown revision"
        return commit[:7]

    def build(self, reference: Reference) -> torch.nn.Module:
        """The official class on meta.

        Raises:
            UnavailableError: it cannot be imported or built, or has no attention that can be replaced.
        """
        name, _, part = reference.name.partition(".")
        with self._in_use():
            file = self._imported(reference)
            if not hasattr(file, name):
                self._unavailable(reference, f"it has no {name}")
            if official_class(reference).attention and not hasattr(sys.modules.get(ATTENTION), "flash_attention"):
                self._unavailable(reference, f"{ATTENTION} has no flash_attention")
            try:
                with torch.device("meta"):
                    built = getattr(file, name)(**reference.arguments)
                found: Any = attrgetter(part)(built) if part else built
                module: torch.nn.Module = found.eval()
                return module
            except (Exception, SystemExit) as error:
                self._unavailable(reference, f"{reference.name} cannot be built", error)

    def measure(
        self,
        reference: Reference,
        module: torch.nn.Module,
        inputs: Mapping[str, Tensor],
        times: int,
        *,
        called: Iterable[str],
        named: Iterable[str],
    ) -> Measured:
        """Call a module of :meth:`build` so often and count.

        Args:
            called: paths of the analytic modules that the call runs.
            named: paths of all its modules.

        Raises:
            UnavailableError: it cannot be called.
        """
        official = official_class(reference)
        tensors = arguments(module, inputs, torch.device("meta"))
        call = partial(official.call, module, reference, tensors)
        with self._in_use(), replaced_attention(self._modules.values()):
            try:
                counted = count(_Run(module, call, times))
            except (Exception, SystemExit) as error:
                self._unavailable(reference, f"{reference.name} cannot be called", error)
        names = official.names(reference)
        flops = renamed(_below_wrapper(counted.own), names)
        params = renamed(_own_params(module, names), names)
        return Measured(
            flops.at(called),
            params.at(named),
            counted.uncounted_ops,
            unknown=tuple(dict.fromkeys((*flops.unknown, *params.unknown))),
        )

    def _imported(self, reference: Reference) -> ModuleType:
        """The module of a reference; the packages that it lies in only say where they are."""
        parts = reference.package.split(".")
        for depth in range(1, len(parts)):
            name = ".".join(parts[:depth])
            if name not in sys.modules:
                sys.modules[name] = ModuleType(name)
                sys.modules[name].__path__ = [str(self.path.joinpath(*parts[:depth]))]
        try:
            return importlib.import_module(reference.package)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if missing.partition(".")[0] != PACKAGE:
                self._unavailable(reference, f"it needs package {missing}, which is not installed")
            self._unavailable(reference, "it cannot be imported", error)
        except (Exception, SystemExit) as error:
            self._unavailable(reference, "it cannot be imported", error)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Its modules are loaded, quietly; afterwards everything is as it was."""
        held = {name: sys.modules.pop(name) for name in self._loaded()}
        path, dont_write_bytecode = list(sys.path), sys.dont_write_bytecode
        sys.dont_write_bytecode = True
        sys.modules.update(self._modules)
        try:
            with redirect_stdout(sys.stderr), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            self._modules = {name: sys.modules.pop(name) for name in self._loaded()}
            sys.modules.update(held)
            sys.path[:] = path
            sys.dont_write_bytecode = dont_write_bytecode

    def _loaded(self) -> list[str]:
        """Names of the loaded modules that are called as its package is, or come from its path."""
        return [
            name
            for name, module in sys.modules.items()
            if name.partition(".")[0] == PACKAGE or Path(_file(module)).is_relative_to(self.path)
        ]

    def _unavailable(self, reference: Reference, what: str, error: BaseException | None = None) -> NoReturn:
        reason = f": {type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_REASON] if error else ""
        raise UnavailableError(f"official-path={shown(str(self.path))}: {file_of(reference)}: {what}{reason}") from None


def find_repository(path: str | None, wanted: Iterable[str]) -> str:
    """Which of the repositories a checkout is of.

    Raises:
        UnavailableError: there is no path, or no checkout of any of them.
    """
    wanted = list(dict.fromkeys(wanted))
    if path is None:
        raise UnavailableError(f"reference=official: --official-path has to name a checkout; {how_to_get(wanted)}")
    for repository in wanted:
        if (Path(path) / LAYOUT[repository]).is_file():
            return repository
    files = " or ".join(LAYOUT[repository] for repository in wanted)
    raise UnavailableError(f"official-path={shown(path)}: it has no {files}; {how_to_get(wanted)}")


def file_of(reference: Reference) -> str:
    """Where a checkout has the class of a reference."""
    return f"{reference.package.replace('.', '/')}.py"


def how_to_get(repositories: Iterable[str]) -> str:
    """How a user gets a checkout.

    Example:
        >>> how_to_get(["Wan2.1"])
        'get it with: git clone https://github.com/Wan-Video/Wan2.1'
    """
    return "get it with: " + " or ".join(
        f"git clone https://github.com/Wan-Video/{repository}" for repository in repositories
    )


def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_lens: torch.Tensor | None = None,
    k_lens: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """What stands in for the official function: [B, Lq, H, E], twice [B, Lk, H, E] -> [B, Lq, H, E].

    Keys and values are cut to ``k_lens``, queries are not. The options change no size.

    Example:
        >>> q, k = torch.zeros(2, 3, 1, 4), torch.zeros(2, 5, 1, 4)
        >>> flash_attention(q, k, k, k_lens=torch.tensor([5, 2])).shape
        torch.Size([2, 3, 1, 4])
    """
    lengths = [k.shape[1]] * len(k) if k_lens is None else k_lens.tolist()
    attended = []
    for i, length in enumerate(lengths):
        query, key, value = (x[i : i + 1].transpose(1, 2) for x in (q, k[:, :length], v[:, :length]))
        attended.append(torch.nn.functional.scaled_dot_product_attention(query, key, value))
    return torch.cat(attended).transpose(1, 2).contiguous()


@contextmanager
def replaced_attention(modules: Iterable[ModuleType]) -> Iterator[None]:
    """Wherever these modules have a kernel for attention, it is scaled dot-product attention until the end."""
    found = [(vars(module), name) for module in modules for name in KERNELS if name in vars(module)]
    own = [names[name] for names, name in found]
    try:
        for names, name in found:
            names[name] = flash_attention
        yield
    finally:
        for (names, name), kernel in zip(found, own, strict=True):
            names[name] = kernel


class _Run(torch.nn.Module):
    """A call that runs a module, made several times in a row, so that hooks see all of it."""

    def __init__(self, module: torch.nn.Module, call: Callable[[], object], times: int) -> None:
        super().__init__()
        self.module = module
        self.call = call
        self.times = times

    def forward(self) -> None:
        for _ in range(self.times):
            self.call()


def _below_wrapper(own: Mapping[str, int]) -> Counter[str]:
    """Numbers below :class:`_Run`, by path; what a called method does itself is the root's."""
    found: Counter[str] = Counter()
    for path, flops in own.items():
        found[path.removeprefix("module").removeprefix(".")] += flops
    return found


def _own_params(module: torch.nn.Module, names: Mapping[str, Any]) -> Counter[str]:
    """Parameters by path of the module that holds them, or by their own where a table names them."""
    found: Counter[str] = Counter()
    for path, weight in module.named_parameters():
        found[path if path in names else path.rpartition(".")[0]] += weight.numel()
    return found


def _file(module: object) -> str:
    return str(getattr(module, "__dict__", {}).get("__file__") or "")
