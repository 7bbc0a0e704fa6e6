"""Device of a run, and the processes started by torchrun."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed as dist, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from kexue._devices import choose_device
from kexue.optim.stack import layers, parameters
from kexue.train._encoding import map_tensors
from kexue.train.config import Distributed, LossOutput, Precision


class Processes:
    """This process, `rank` of `world`, on `device`. With one process every method does nothing or returns its input."""

    def __init__(self, kind: Distributed, device: str) -> None:
        self.kind = kind
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if kind != "none" else (0, 1)
        self.device = choose_device(device)
        if kind != "none" and self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        self._wrapped: nn.Module | None = None

    def distribute(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> nn.Module:
        """Move the model to the device, copied or sharded; return the module to call for a `training_step`."""
        model.to(self.device)
        if self.kind == "ddp":
            ids = [self.device] if self.device.type == "cuda" else None
            # A step may leave weights unused, as with several optimizers in turn, or a branch that is not taken.
            return DistributedDataParallel(_Step(model), device_ids=ids, find_unused_parameters=True)
        if self.kind == "fsdp2" and not isinstance(model, FSDPModule):
            name_of = {id(parameter): name for name, parameter in model.named_parameters()}
            fully_shard(model, mesh=init_device_mesh(self.device.type, (self.world,)))
            register_fsdp_forward_method(model, "training_step")
            sharded = dict(model.named_parameters())
            for optimizer in optimizers:  # built with the weights as they were before sharding
                _replace_parameters(optimizer, lambda parameter: sharded[name_of[id(parameter)]])
        return _Step(model)

    @contextmanager
    def accumulating(self, step: nn.Module, last: bool) -> Iterator[None]:
        """Forward and backward of one batch: gradients cross processes only with the `last` one of a step."""
        context: AbstractContextManager[Any] = nullcontext()
        if isinstance(step, DistributedDataParallel) and not last:
            context = step.no_sync()
        elif isinstance(step, _Step) and isinstance(step.model, FSDPModule):
            step.model.set_requires_gradient_sync(last)
        with context:
            yield

    @contextmanager
    def gather_weights(self, model: nn.Module) -> Iterator[None]:
        """Within the `with`, gather every weight in full, for code that calls other methods than `training_step`."""
        if isinstance(model, FSDPModule):
            model.unshard()
        try:
            yield
        finally:
            if isinstance(model, FSDPModule):
                model.reshard()

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true in any process."""
        if self.world == 1:
            return flag
        largest = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return bool(largest)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over processes."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def first(self, value: Any) -> Any:
        """The value of the first process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values


def join(kind: Distributed, device: str) -> Processes:
    """Join the processes that torchrun started, unless the caller has; they stay joined until the program ends.

    A process cannot leave and join again, because it would use addresses that are no longer valid; and a sharded model
    needs all processes anyway.

    Raises:
        ValueError: `kind` needs several processes and there is one, or the other way round.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    started = "WORLD_SIZE" in os.environ or dist.is_initialized()
    if kind == "none" and world > 1:
        raise ValueError(f"{world} processes were started, but distributed is 'none': choose 'ddp' or 'fsdp2'")
    if kind != "none" and not started:
        command = "torchrun --standalone --nproc-per-node=2 SCRIPT"
        raise ValueError(f"distributed={kind!r} needs processes: start it with {command}")
    if kind != "none" and not dist.is_initialized():
        cuda = device != "cpu" and torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        # torchrun's store outlives a restart: without a prefix the addresses of dead processes would be used.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt-{attempt}", store)  # type: ignore[attr-defined]
        dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=size)
        if cuda:
            atexit.register(dist.destroy_process_group)
    return Processes(kind, device)


def choose_precision(precision: Precision, processes: Processes) -> str:
    """The precision of a run: ``"fp32"``, ``"bf16"`` or ``"fp16"``.

    Raises:
        ValueError: fp16 with a sharded model.
    """
    device = processes.device
    if precision == "auto" and device.type == "cuda":
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    elif precision == "auto":
        precision = "fp32"
    if precision == "fp16" and processes.kind == "fsdp2":
        raise ValueError("precision 'fp16' scales gradients, which fsdp2 shards: choose 'bf16'")
    return precision


class _Step(nn.Module):
    """`training_step` as a forward pass, which wrappers of modules hook into."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any, **options: Any) -> LossOutput:
        output = self.model.training_step(batch, **options)
        if not isinstance(output, tuple) or not isinstance(output[0], Tensor) or output[0].numel() != 1:
            got = tuple(output[0].shape) if isinstance(output, tuple) and isinstance(output[0], Tensor) else output
            raise TypeError(f"training_step must return a LossOutput with a tensor of one number as loss, got {got!r}")
        loss, parts = LossOutput(*output)
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise ValueError("training_step returned a loss without a graph: no trainable parameter took part in it")
        parts = {name: _read_part(name, part, loss.device) for name, part in parts.items()}
        if loss.is_leaf and dist.is_initialized():  # `GradCache` made its backward pass already, unseen by the wrapper
            loss = _LinkWeights.apply(loss, *(p for p in self.model.parameters() if p.requires_grad))  # type: ignore[no-untyped-call]
        return LossOutput(loss, parts)


def _read_part(name: str, value: Any, device: torch.device) -> Tensor:
    """A part as a number for the log, in float32 and without graph; the mean of several numbers."""
    try:
        number = torch.as_tensor(value, device=device).detach()
        if not number.is_complex():
            return number.float().mean()
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(f"part {name!r} of training_step must be a real number or a tensor of such, got {value!r}")


class _LinkWeights(torch.autograd.Function):
    """The loss with every weight in its graph; its backward pass gives each weight the gradient zero."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*weights)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(torch.zeros_like(weight) for weight in ctx.saved_tensors))


def _replace_parameters(optimizer: Optimizer, replace: Callable[[Tensor], Tensor]) -> None:
    """Replace the parameters of an optimizer; their state goes to the new ones."""
    for given in optimizer.param_groups:
        for index, parameter in enumerate(given["params"]):
            new = given["params"][index] = replace(parameter)
            if state := optimizer.state.pop(parameter, None):
                optimizer.state[new] = {
                    name: shard_like(value, new) if isinstance(value, Tensor) else value
                    for name, value in state.items()
                }
    for layer in layers(optimizer):
        layer.follow_replacements()


def full_state(tree: Any) -> Any:
    """Nested state with sharded tensors in full; every process must call it."""
    return map_tensors(tree, lambda t: t.full_tensor() if isinstance(t, DTensor) else t)


def shard_like(value: Tensor, pattern: Tensor) -> Tensor:
    """A full tensor sharded like `pattern`, if that is sharded."""
    if not isinstance(pattern, DTensor) or isinstance(value, DTensor) or value.shape != pattern.shape:
        return value
    return distribute_tensor(value.to(pattern.device), pattern.device_mesh, pattern.placements)


def shard_optimizer_state(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The full state dict of an optimizer, sharded like its parameters."""
    params = parameters(optimizer)
    if not any(isinstance(parameter, DTensor) for parameter in params):
        return state
    sharded = {
        index: {
            key: shard_like(value, params[index]) if isinstance(value, Tensor) else value
            for key, value in entries.items()
        }
        for index, entries in state["state"].items()
    }
    return {**state, "state": sharded}
