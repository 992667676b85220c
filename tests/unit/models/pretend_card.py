"""Pretend graphics card: tensors on `cuda` that have shapes, types and a device but no values; those on the CPU are real.

torch's FakeTensorMode computes the shapes. It refuses operations on tensors of two devices, by name, and those whose
result has a shape that depends on values. This module notes what else a host has to wait for: numbers that it reads,
copies between the devices, and positions on the CPU that pick rows on the card.
"""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CARD = torch.device("cuda", 0)
aten = torch.ops.aten
READS = (aten._local_scalar_dense.default, aten.equal.default)
PICKS = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


class Card(TorchDispatchMode):
    """Mode that computes with the card's tensors as fakes and with all others as usual.

    waits: what the host waited for, by the function of ours that it happened in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: dict[str, set[str]] = defaultdict(set)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, Tensor)]
        is_on_card = any(isinstance(each, FakeTensor) for each in tensors)
        if not is_on_card and torch.device(options.get("device") or "cpu").type == "cpu":
            with unset_fake_temporarily():
                return func(*args, **options)
        if wait := reason_to_wait(func, args, options, tensors):
            self.waits[_place()].add(wait)
        if func in READS:  # any answer lets the program go on
            return args[0].dtype.is_floating_point or True
        if func is aten.copy_.default and not isinstance(args[0], FakeTensor):
            return args[0]
        return tree_map(_real_on_cpu, func(*args, **options))


def reason_to_wait(func: Any, args: Sequence[Any], options: Mapping[str, Any], tensors: Sequence[Tensor]) -> str | None:
    """Reason for which the host waits in an operation; None if it goes on at once."""
    if func in READS:
        return "reads a number"
    if func in PICKS:
        if any(not isinstance(each, FakeTensor) and each.ndim for each in tensors):
            return "picks by positions on the CPU"
        masks = [each for each in args[1] if each is not None and each.dtype == torch.bool]
        return "picks by a mask" if masks else None
    if func is aten._to_copy.default:
        return _copy(args[0].device, options.get("device"), options.get("non_blocking"))
    if func is aten.copy_.default:
        return _copy(args[1].device, args[0].device, options.get("non_blocking") or args[2:] == (True,))
    return None


def _copy(source: torch.device, to: torch.device | None, is_asynchronous: bool | None) -> str | None:
    if to is None or source.type == to.type:
        return None
    if to.type == "cpu":
        return "copies to the CPU"
    return None if is_asynchronous else "copies from the CPU"


def _real_on_cpu(value: Any) -> Any:
    """Zeros in place of a fake on the CPU, so that what was copied there can be used."""
    if isinstance(value, FakeTensor) and value.device.type == "cpu":
        with unset_fake_temporarily():
            return torch.zeros(value.shape, dtype=value.dtype)
    return value


def _place() -> str:
    """Module and function of ours that is running."""
    frame = sys._getframe()
    while frame.f_back is not None and not frame.f_globals["__name__"].startswith("models."):
        frame = frame.f_back
    return f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname.partition('.<locals>')[0]}"


def run_backward(
    outputs: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    keep_graph: bool,
    create_graph: bool,
    inputs: Sequence[Tensor] = (),
    allow_unreachable: bool = True,
    accumulate_grad: bool = False,
) -> tuple[Tensor | None, ...]:
    """Backward pass in the order that torch's own engine follows, which needs a real card for tensors on `cuda`."""
    edges = [get_gradient_edge(each) for each in outputs]
    wanted = [get_gradient_edge(each) for each in inputs]
    pending: dict[Any, list[Tensor | None]] = {}
    for edge, gradient in zip(edges, gradients, strict=True):
        _add(pending, edge.node, edge.output_nr, gradient)
    found: dict[tuple[Any, int], Tensor | None] = {}
    with torch.set_grad_enabled(create_graph):
        for node in _in_order([edge.node for edge in edges]):
            given = pending.pop(node, None)
            if given is None:
                continue
            found |= {(node, number): each for number, each in enumerate(given)}
            is_leaf = hasattr(node, "variable")
            if is_leaf and not accumulate_grad:
                continue
            results = _apply(node, given)
            for (following, number), result in zip(node.next_functions, results, strict=False):
                if following is not None and result is not None:
                    _add(pending, following, number, result)
    return tuple(found.get((edge.node, edge.output_nr)) for edge in wanted)


def _apply(node: Any, given: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    is_ours: bool = isinstance(node, BackwardCFunction)
    if is_ours:
        full = [_zeros(meta) if each is None else each for each, meta in zip(given, node._input_metadata, strict=True)]
        results = node.apply(*full)
    else:
        results = node(*given)
    return results if isinstance(results, tuple) else (results,)


def _zeros(meta: Any) -> Tensor:
    return torch.zeros(tuple(meta.shape), dtype=meta.dtype, device=meta.device)


def _like(gradient: Tensor, meta: Any) -> Tensor:
    """A gradient in the shape and type of what it belongs to, as the engine makes it; numbers also change devices."""
    shape = tuple(meta.shape)
    gradient = gradient if gradient.shape == shape else gradient.sum_to_size(shape)
    return gradient.to(gradient.device if shape else meta.device, meta.dtype)


def _add(pending: dict[Any, list[Tensor | None]], node: Any, number: int, gradient: Tensor | None) -> None:
    slots = pending.setdefault(node, [None] * len(node._input_metadata))
    if gradient is not None:
        gradient, before = _like(gradient, node._input_metadata[number]), slots[number]
        slots[number] = gradient if before is None else before + gradient


def _in_order(roots: Sequence[Any]) -> list[Any]:
    """All nodes that can be reached, each before those that its gradient goes to."""
    done: list[Any] = []
    seen, stack = set(), [(root, False) for root in roots]
    while stack:
        node, is_left = stack.pop()
        if is_left:
            done.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions if following is not None]
    return done[::-1]


@contextlib.contextmanager
def pretend_card() -> Iterator[Card]:
    """Context with a pretend card, in which autocast to bfloat16 and backward passes work as on a real one."""
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch("torch.cuda.get_rng_state", return_value=torch.zeros(16, dtype=torch.uint8)),
        mock.patch("torch.cuda.set_rng_state"),
        mock.patch("torch.autograd._engine_run_backward", run_backward),
        FakeTensorMode(allow_non_fake_inputs=True),
        Card() as card,
    ):
        yield card
