"""Batch norm in evaluation mode is a scale and a shift: it goes into the convolution before it."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


@torch.no_grad()
def fold_batch_norm(layers: nn.Sequential) -> nn.Sequential:
    """A copy in evaluation mode without the batch norms that come right after a convolution, transposed or not."""
    folded: list[nn.Module] = []
    for layer in layers:
        before = folded[-1] if folded else None
        if isinstance(layer, nn.BatchNorm2d) and isinstance(before, (nn.Conv2d, nn.ConvTranspose2d)):
            folded[-1] = fuse_conv_bn_eval(before, copy.deepcopy(layer).eval(), isinstance(before, nn.ConvTranspose2d))
        else:
            folded.append(copy.deepcopy(layer).eval())
    return nn.Sequential(*folded).eval().requires_grad_(False)
