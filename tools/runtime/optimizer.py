"""SGD and AdamW with parameter groups, a rate scaled by the batch size, and updates that a flag on the device can skip.

Both are torch's fused kernels, which read `found_inf`: where it is 1, parameters, momentum and step counts stay as they
are, and nobody waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from configs.common import OptimConfig
from configs.errors import UserError, counted

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def scaled_rate(config: OptimConfig, batch_size: int) -> float:
    """`config.lr` in proportion to the images of a step (linear scaling, Goyal et al. 2017)."""
    return config.lr * batch_size / config.reference_batch_size


def describe_rate(config: OptimConfig, batch_size: int) -> str:
    """The scaling in words."""
    rate = scaled_rate(config, batch_size)
    if batch_size == config.reference_batch_size:
        return f"{rate:.6g} at {counted(batch_size, 'image')} a step"
    return f"{config.lr:.6g} at {counted(config.reference_batch_size, 'image')} a step, so {rate:.6g} at {batch_size}"


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """The parameters that train, grouped by (factor of the rate, weight decay), with their names.

    Norm layers' scales and offsets take `norm_weight_decay`; other biases `bias_weight_decay` and `bias_lr_factor`.
    """
    norm_decay = config.weight_decay if config.norm_weight_decay is None else config.norm_weight_decay
    bias_decay = config.weight_decay if config.bias_weight_decay is None else config.bias_weight_decay
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if isinstance(module, _NORMS):
                key = (1.0, norm_decay)
            elif name == "bias":
                key = (config.bias_lr_factor, bias_decay)
            else:
                key = (1.0, config.weight_decay)
            group = groups.setdefault(key, {"params": [], "names": [], "rate_factor": key[0], "weight_decay": key[1]})
            group["params"].append(parameter)
            group["names"].append(f"{module_name}.{name}" if module_name else name)
    return [groups[key] for key in sorted(groups)]


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimiser of the parameters that train; its rate is 0 until `set_rate`.

    Raises:
        UserError: everything is frozen.
    """
    groups = parameter_groups(model, config)
    if not groups:
        raise UserError("nothing to train: every parameter is frozen")
    if config.name == "adamw":
        return AdamW(groups, lr=0.0, betas=config.betas, fused=True)
    # torch refuses nesterov without momentum, where it would change nothing.
    optimizer = SGD(
        groups, lr=0.0, momentum=config.momentum, nesterov=config.nesterov and config.momentum > 0, fused=True
    )
    if config.momentum > 0:
        # torch makes the buffers in the first step, uninitialised where that step is skipped. From zero the first
        # update is the same.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


def step_unless(optimizer: Optimizer, skip: Tensor) -> None:
    """One update, which does nothing where `skip` is 1.

    Args:
        optimizer: of `build_optimizer`.
        skip: () float32 on the parameters' device, 0 or 1; it is not read by the host.
    """
    scaling = vars(optimizer)  # what torch.amp.GradScaler hands to fused optimisers
    scaling.update(grad_scale=None, found_inf=skip)
    try:
        optimizer.step()
    finally:
        del scaling["grad_scale"], scaling["found_inf"]


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a saved state; the kernels want each buffer to lie in memory as its parameter does, whatever the file says.

    Raises:
        UserError: the state belongs to other parameters.
    """
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise UserError(f"the checkpoint's optimiser state does not fit this model: {error}") from None
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter).copy_(value)
