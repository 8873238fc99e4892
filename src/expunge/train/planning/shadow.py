"""Run PyTorch code on weights without storage, and count the bytes and the arithmetic it would need.

Tensors that come from the model are shapes only (`FakeTensor`); token ids, masks and stored tables stay real, so that
code which reads them takes the way it takes in a run. What depends on the numbers of a model without numbers is
answered as in a run that goes well: a scalar is 1, `all` is true, `any` is false, and a mask selects everything.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from expunge.train.planning.stopwatch import Call, Operations

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
ACTIVATIONS, LOGITS = "activations", "logits"

_aten = torch.ops.aten
_INDEXED = frozenset({_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_, _aten._unsafe_index})
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: (2, 0),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (5, 1),
}
"""Kernels whose arithmetic PyTorch does not count: their matrix products, and where the queries stand."""


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, books every storage from its first operation until Python lets go of it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = FakeTensorMode()
        """Makes tensors without storage."""
        self.vocab = 0
        """Tensors whose rows are this wide are booked as logits."""
        self.live: Counter[str] = Counter()
        """Bytes held now, by what they are."""
        self.peak: Counter[str] = Counter()
        """The same at the moment most was held since `restart`."""
        self.flops = 0.0
        """Multiplications and additions of matrix products and attention since `restart`."""
        self.operations = Operations()
        """All that was carried out since `restart`, by the label new storages had."""
        self._label = ACTIVATIONS
        self._total = self._most = 0
        self._booked: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def restart(self) -> None:
        """Forget the peak, the arithmetic and the operations so far; what is held stays booked."""
        self.peak, self._most, self.flops = Counter(self.live), self._total, 0.0
        self.operations = Operations()

    def label(self, name: str = ACTIVATIONS) -> None:
        """What new storages are booked as from now on."""
        self._label = name

    def adopt(self, module: nn.Module) -> None:
        """Put a module of the `meta` device on the CPU, without storage, and book it as weights; tied ones stay so."""
        known: dict[int, Tensor] = {}
        for own in module.modules():
            for place in (own._parameters, own._buffers):
                for name, tensor in place.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in known:
                        known[id(tensor)] = self._on_cpu(tensor)
                    place[name] = known[id(tensor)]  # type: ignore[assignment]

    def _on_cpu(self, tensor: Tensor) -> Tensor:
        with self.fake:
            shape = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        made = nn.Parameter(shape, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape
        self.book(made, WEIGHTS)
        return made

    def book(self, tensor: Tensor, label: str) -> None:
        """Book a tensor's storage as `label` from now on."""
        storage = tensor.untyped_storage()
        entry = self._booked.get(storage)  # type: ignore[no-untyped-call]
        if entry is None:
            entry = [label, storage.nbytes()]
            self._booked[storage] = entry
            weakref.finalize(storage, self._release, entry)
            self._add(label, entry[1])
            return
        self._add(entry[0], -entry[1])
        entry[0] = label
        self._add(label, entry[1])

    def _add(self, label: str, count: int) -> None:
        self.live[label] += count
        self._total += count
        if self._total > self._most:
            self._most, self.peak = self._total, Counter(self.live)

    def _release(self, entry: list[Any]) -> None:
        self._add(entry[0], -entry[1])

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            # More than half of all calls only ask where a tensor is.
            return args[0].fake_device
        kwargs = kwargs or {}
        given = [*_tensors(args), *_tensors(kwargs.values())]
        for tensor in given:
            self._see(tensor)
        shapes_only = any(isinstance(tensor, FakeTensor) for tensor in given)
        if shapes_only:
            result = self._shaped(func, args, kwargs)
        else:
            result = func(*args, **kwargs) if given else self._made(func, args, kwargs)
        for tensor in _tensors((result,)):
            self._see(tensor, copied=given[0] if func is _aten._to_copy.default else None)
        return result

    def _see(self, tensor: Tensor, *, copied: Tensor | None = None) -> None:
        storage = tensor.untyped_storage()
        if storage in self._booked:
            return
        label = self._label
        if copied is not None and self._booked[copied.untyped_storage()][0] == WEIGHTS:
            # Autocast's copies of weights live and die with a forward pass.
            label = WEIGHTS
        elif label == ACTIVATIONS and tensor.ndim > 1 and tensor.shape[-1] == self.vocab and tensor.is_floating_point():
            label = LOGITS
        self.book(tensor, label)

    def _shaped(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """One operation on shapes."""
        known = _foreseen(func, args)
        if known is not None:
            return known
        if func.overloadpacket in _INDEXED:
            args = (args[0], _counted(args[1]), *args[2:])
        with self.fake:
            result = func(*map(self._shape_of, args), **{name: self._shape_of(value) for name, value in kwargs.items()})
        self._count(func, args, kwargs, result)
        return result

    def _made(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A tensor made of nothing: numbers to compute with have shapes only, places and masks are real."""
        with self.fake:
            result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return func(*args, **kwargs)
        self._count(func, args, kwargs, result)
        return result

    def _shape_of(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self._shape_of(each) for each in value]
        real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self.fake.from_tensor(value) if real else value

    def _count(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        packet, flops = func.overloadpacket, 0.0
        if packet in _ATTENTION:
            products, place = _ATTENTION[packet]
            # Half of the scores lie in the future; kernels leave them out.
            flops = float(products * args[place].numel() * args[place + 1].shape[-2])
        elif packet in flop_registry:
            flops = float(flop_registry[packet](*args, **kwargs, out_val=result))
        self.flops += flops
        traffic = sum(tensor.nbytes for tensor in (*_tensors(args), *_tensors(kwargs.values()), *_tensors((result,))))
        self.operations.add(self._label, Call(func, args, kwargs, flops, traffic))


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among arguments or results, also those in lists."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _foreseen(func: Any, args: Sequence[Any]) -> Any:
    """What a run that goes well would find in numbers that are not there; None where none are asked for."""
    if func is _aten._local_scalar_dense.default:
        return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
    if func.overloadpacket in (_aten.all, _aten.any) and len(args) == 1:
        return torch.tensor(func.overloadpacket is _aten.all)
    if func.overloadpacket in (_aten.equal, _aten.allclose):
        return True
    if func is _aten.nonzero.default:
        return torch.zeros(args[0].numel(), args[0].ndim, dtype=torch.long)
    if func is _aten.masked_select.default:
        return args[0].new_empty(args[0].numel())
    return None


def _counted(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Masks as lists of places."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype != torch.bool:
            found.append(index)
        elif isinstance(index, FakeTensor):
            found += [torch.zeros(index.numel(), dtype=torch.long)] * index.ndim
        else:
            found += index.nonzero().unbind(1)
    return found
