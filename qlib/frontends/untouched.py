"""Running a module without leaving traces in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def private_copy(tensor: Tensor) -> Tensor:
    """A copy with memory of its own and the same strides."""
    copy: Tensor = tensor.detach().clone()
    if copy.stride() == tensor.stride():
        return copy
    storage = tensor.untyped_storage().clone()
    return torch.empty(0, dtype=tensor.dtype).set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Give the module its attributes and the contents of its buffers back, whatever a run does to them.

    Parameters are not copied, because they are large and forward methods don't change them.
    """
    attributes = [(owner, dict(vars(owner)), dict(owner._buffers)) for owner in module.modules()]
    tensors = [t for _, plain, own in attributes for t in (*own.values(), *plain.values()) if isinstance(t, Tensor)]
    contents = [(tensor, private_copy(tensor)) for tensor in tensors]
    try:
        yield
    finally:
        for owner, plain, buffers in attributes:
            for name in set(vars(owner)) - set(plain):
                del vars(owner)[name]
            vars(owner).update(plain)
            owner._buffers.update(buffers)
        with torch.no_grad():
            for tensor, content in contents:
                # Compared by content, because batch norms change their statistics without a new version.
                if not torch.equal(tensor, content):
                    tensor.copy_(content)
