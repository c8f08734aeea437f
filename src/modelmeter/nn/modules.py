"""Modules on shapes, as ``torch.nn``: attribute names are paths, calling a module records what it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

from modelmeter.nn.autocast import current_autocast
from modelmeter.nn.cache import Cache
from modelmeter.nn.dtype import DType, float32
from modelmeter.nn.polynomial import Dim
from modelmeter.nn.tensor import Parameter, Storage, Tensor
from modelmeter.nn.tracing import Body, Op, Trace, current_trace, tracing


class Module:
    """Base of all modules: submodules and weights are attributes, ``forward`` says what runs.

    ``forward`` may not change the module. A subclass defines ``__init__`` and ``forward``; no call to
    ``super().__init__()`` is needed.

    Example:
        >>> from modelmeter.nn import Linear
        >>> class Pair(Module):
        ...     def __init__(self) -> None:
        ...         self.first, self.second = Linear(4, 8), Linear(8, 2)
        ...     def forward(self, x: Tensor) -> Tensor:
        ...         return self.second(self.first(x))
        >>> [name for name, _ in Pair().named_modules()], Pair().params
        (['', 'first', 'second'], 58)
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # The argument tuple lives here until the call returns, as it does in torch.nn.Module.__call__.
        return _call(current_trace(), self, args, kwargs)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Submodules by attribute name, in the order of definition."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, by path."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All weights by path; one that several modules share has the path of the first."""
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    def own_weights(self) -> list[Parameter]:
        """Weights of this module itself, without those of its submodules."""
        return [value for value in vars(self).values() if isinstance(value, Parameter)]

    @property
    def own_params(self) -> int:
        """Parameters of this module itself, without its submodules."""
        return sum(_size(weight) for weight in self.own_weights())

    @property
    def params(self) -> int:
        """Parameters of this module and all below it, shared weights once."""
        return sum(_size(weight) for _, weight in self.named_parameters())

    def to(self, dtype: DType, *, keep_in_fp32: Sequence[str] = ()) -> Self:
        """Set the dtype of all weights; those with a path component in ``keep_in_fp32`` become float32.

        Source: diffusers ``ModelMixin.from_pretrained(torch_dtype=...)`` and ``_keep_in_fp32_modules``.
        """
        kept = set(keep_in_fp32)
        converted: dict[int, Parameter] = {}  # what modules share, they share afterwards; the first path decides
        for path, weight in self.named_parameters():
            wanted = float32 if kept.intersection(path.split(".")) else dtype
            converted[id(weight)] = Parameter(weight.shape, wanted)
        for _, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    vars(module)[name] = converted[id(value)]
        return self


def _size(parameter: Parameter) -> int:
    numel = parameter.numel()
    assert isinstance(numel, int)  # weights have the shape of the configuration, never of the workload
    return numel


# -- calls: run once, share afterwards ----------------------------------------------------------------------


class _View(NamedTuple):
    """How to make an output tensor again: its layout, and which storage it is on."""

    tensor: tuple[Any, ...]
    storage: int
    """Index of a new storage, or ``-1 - i`` for the storage of argument tensor ``i``."""


def _call(trace: Trace, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    before = trace.live
    known: dict[int, int] = {}
    taken = _key(args, known), _key(tuple(kwargs.items()), known)
    key = (_signature(trace, module), *taken, current_autocast())
    # what a call may change: caches, and lists of tensors that it is handed and may take out
    caches = [value for value in (*args, *kwargs.values()) if isinstance(value, Cache | list)]
    cached = _cached_bytes(trace, caches)
    memo = None if caches else trace.memo  # what changes a cache has to run
    if memo is not None and key in memo:
        body, template = memo[key]
        arguments = list(_storages((args, kwargs)))
        outputs = _rebuild(template, trace, arguments, {})
    else:
        with trace.body(module) as body:
            outputs = module.forward(*args, **kwargs)
        arguments = list(_storages((args, kwargs)))
        template = _template(outputs, {id(storage): -1 - i for i, storage in enumerate(arguments)})
        new = {id(s): s.nbytes for s in _storages(outputs) if s.trace is not None and s not in arguments}
        kept = sum(new.values()) + _cached_bytes(trace, caches) - cached
        if trace.live - before != kept:
            raise RuntimeError(
                f"{body.path or body.module} left {trace.live - before} bytes alive where its outputs "
                f"and caches hold {kept}: something kept a tensor"
            )
        if memo is not None:
            memo[key] = (body, template)
    trace.called(body, module, before)
    return outputs


def _signature(trace: Trace, module: Module) -> object:
    """All that decides what a module runs: class, settings, weights, submodules; interned in the trace."""
    found = trace.signatures.get(id(module))
    if found is None:
        parts: list[object] = [type(module)]
        for name, value in vars(module).items():
            if isinstance(value, Module):
                parts.append((name, _signature(trace, value)))
            else:
                parts.append((name, value.spec if isinstance(value, Tensor) else value))
        found = trace.interned.setdefault(tuple(parts), len(trace.interned))
        trace.signatures[id(module)] = found
    return found


def _key(value: Any, known: dict[int, int]) -> object:
    """Arguments as a key: tensors by layout, and by which of them are the same or share a storage."""
    if isinstance(value, Tensor):
        same = known.setdefault(id(value.storage), len(known)), known.setdefault(id(value), len(known))
        return value.shape, value.dtype, value._strides, type(value.storage), same
    if isinstance(value, tuple | list):
        return tuple([_key(item, known) for item in value])
    return value


def _cached_bytes(trace: Trace, caches: Sequence[Cache[Any] | list[Any]]) -> Dim:
    """Bytes that the running forward holds through its caches and what it is handed."""
    held = {id(s): s.nbytes for s in _storages(caches) if s.trace is trace}
    return sum(held.values())


def _storages(value: Any) -> Iterator[Storage]:
    if isinstance(value, Tensor):
        yield value.storage
    elif isinstance(value, Cache):
        for tensor in value.tensors:
            yield tensor.storage
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _storages(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _storages(item)


def _template(value: Any, places: dict[int, int]) -> Any:
    if isinstance(value, Tensor):
        place = places.setdefault(id(value.storage), sum(p >= 0 for p in places.values()))
        storage = value.storage
        made = type(storage), storage.nbytes, storage.trace is not None
        return _View((value.shape, value.dtype, value._strides, *made), place)
    if isinstance(value, tuple | list):
        return tuple([_template(item, places) for item in value])
    return value


def _rebuild(template: Any, trace: Trace, arguments: list[Storage], made: dict[int, Storage]) -> Any:
    if isinstance(template, _View):
        shape, dtype, strides, storage_class, nbytes, counted = template.tensor
        if template.storage < 0:
            storage = arguments[-1 - template.storage]
        elif template.storage in made:
            storage = made[template.storage]
        else:
            storage = made[template.storage] = storage_class(nbytes, trace if counted else None)
        return Tensor(shape, dtype, storage, strides)
    if isinstance(template, tuple):
        return tuple([_rebuild(item, trace, arguments, made) for item in template])
    return template


class Record(NamedTuple):
    """A finished trace: the body of the root and what it returned."""

    body: Body
    outputs: Any

    @property
    def ops(self) -> list[Op]:
        """The operators that the root ran itself."""
        return list(self.body.ops)


def trace(module: Module, /, *args: Any, memo: bool = True, **kwargs: Any) -> Record:
    """Run ``module`` once on shapes and record it.

    Args:
        args, kwargs: what ``forward`` takes; tensors are inputs and count in no live bytes.
        memo: share equal calls instead of running each; the record reads the same.

    Raises:
        RuntimeError: more bytes are alive after the run than the outputs hold.

    Example:
        >>> from modelmeter.nn import Linear, float32
        >>> record = trace(Linear(4, 8), Tensor((3, 4), float32))
        >>> record.ops[0].flops, record.outputs.shape
        (192, (3, 8))
    """
    state = Trace({id(child): path for path, child in module.named_modules()}, memo=memo)
    with tracing(state):
        outputs = module(*args, **kwargs)
    (body,) = state.roots
    return Record(body, outputs)


class _Function(Module):
    def __init__(self, function: Any) -> None:
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def trace_function(function: Any, *args: Any) -> Record:
    """Record a function of tensors, as :func:`trace` does a module.

    Example:
        >>> from modelmeter.nn import float32, functional
        >>> trace_function(functional.gelu, Tensor((3, 4), float32)).ops[0].name
        'gelu'
    """
    return trace(_Function(function), *args)
