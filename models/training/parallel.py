"""torch's own data parallel for the learner of a training, and its states as one worker would have them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from models import distributed
from models.errors import ConfigError

if TYPE_CHECKING:
    from models.training.step import Learner

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
SHARED = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def in_parallel(learner: Learner) -> nn.Module:
    """The learner as torch's data parallel runs it, if there are several workers and it is not sharded.

    Gradients are exchanged in buckets while the backward pass goes on. Batch norm statistics are not copied from the first
    worker: `models.distributed.average_buffers` averages them.
    """
    if distributed.world() == 1 or isinstance(learner, FSDPModule):
        return learner
    has_parameters = any(parameter.requires_grad for parameter in learner.loss.parameters())  # idle in its warm-up
    return DistributedDataParallel(
        learner, forward_sync_buffers=False, find_unused_parameters=has_parameters, gradient_as_bucket_view=True
    )


def freeze_unused(part: nn.Module, *, sample: Tensor) -> None:
    """Freezes parameters that the answers for a sample do not depend on, and whose gradients torch would wait for.

    Some of timm's backbones have such parameters when they are built without their classifier.
    """
    wanted = [parameter for parameter in part.parameters() if parameter.requires_grad]
    part.eval()
    answers = sum(answer.sum() for answer in part(sample))
    found = torch.autograd.grad(answers, wanted, allow_unused=True)
    for parameter, gradient in zip(wanted, found, strict=True):
        parameter.requires_grad_(gradient is not None)


@contextmanager
def only_own_gradients(learner: nn.Module, *, when: bool) -> Iterator[None]:
    """Context in which gradients are added up without an exchange, if `when`: a later pass of the step exchanges them."""
    if isinstance(learner, FSDPModule):
        learner.set_requires_gradient_sync(not when)
    with learner.no_sync() if when and isinstance(learner, DistributedDataParallel) else nullcontext():
        yield


def shard(learner: nn.Module, backbone: nn.Module) -> None:
    """Spreads parameters, gradients and the optimiser's state over the workers, in place (torch's fully_shard, FSDP2).

    The parameters of one block of the backbone are whole at a time; those of the head are whole during a step.

    Raises:
        ConfigError: there is one worker, which would hold everything anyway.
    """
    if distributed.world() == 1:
        raise ConfigError(
            "train.shard: there is one worker, which has to hold all parameters; set train.workers above 1"
        )
    learner.to(memory_format=torch.contiguous_format)
    for block in blocks(backbone):
        fully_shard(block)
    fully_shard(learner)


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """The repeated parts of one of timm's backbones: the modules in the sequences at its top."""
    sequences = [child for child in backbone.children() if isinstance(child, nn.Sequential)]
    return [module for sequence in sequences for module in sequence if next(module.parameters(), None) is not None]


def gather(learner: nn.Module) -> None:
    """Gives every worker all parameters, so that each can score photos at its own pace."""
    for part in _sharded_parts(learner):
        part.set_reshard_after_forward(False)
        part.unshard()


def spread(learner: nn.Module) -> None:
    """Undoes `gather`: every worker keeps its share."""
    for part in _sharded_parts(learner):
        part.set_reshard_after_forward(True)
        part.reshard()


def _sharded_parts(learner: nn.Module) -> list[FSDPModule]:
    return [module for module in learner.modules() if isinstance(module, FSDPModule)]


def state_of(network: nn.Module) -> dict[str, Any]:
    """The network's state, also if it is sharded; every worker has to call this."""
    return get_model_state_dict(network, options=WHOLE) if is_sharded(network) else network.state_dict()


def optimizer_state_of(learner: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state, also if it is sharded; every worker has to call this."""
    if is_sharded(learner):
        return dict(get_optimizer_state_dict(learner, optimizer, options=WHOLE))
    return optimizer.state_dict()


def load_state(network: nn.Module, state: dict[str, Any]) -> None:
    """Restores what `state_of` returned."""
    if is_sharded(network):
        set_model_state_dict(network, state, options=SHARED)
    else:
        network.load_state_dict(state)


def load_optimizer_state(learner: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restores what `optimizer_state_of` returned."""
    if is_sharded(learner):
        set_optimizer_state_dict(learner, optimizer, state, options=SHARED)
    else:
        optimizer.load_state_dict(state)


def is_sharded(module: nn.Module) -> bool:
    """True if `shard` has spread the parameters of a module over the workers."""
    return any(isinstance(each, DTensor) for each in module.state_dict().values())
