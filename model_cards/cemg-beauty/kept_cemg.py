"""Results that follow from weights and a catalogue alone, kept for as long as these stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook


class State(NamedTuple):
    """A tensor and what tells whether it still holds what it held.

    `values` shares its memory, which hence is not given to another tensor: no two contents ever lie at one address under one version.
    """

    tensor: Tensor
    values: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> State:
        return cls(tensor, tensor.detach(), tensor._version)

    def holds(self, tensor: Tensor) -> bool:
        """Whether `tensor` is the same one, nothing was written into it, and its memory was not replaced (`tensor.data = …`)."""
        values = self.values
        return (
            tensor is self.tensor
            and tensor._version == self.version
            and tensor.data_ptr() == values.data_ptr()
            and tensor.dtype == values.dtype
            and tensor.device == values.device
            and tensor.shape == values.shape
        )


class Kept:
    """A tensor that is computed from other tensors, and kept until one of them changes.

    It is computed afresh, and nothing is kept, where gradients are recorded, where a graph is compiled, and of tensors that keep no
    account of changes (made in inference mode, or of a class of their own, such as shards). One that changed is noticed by its version,
    which every operation that writes into it raises, and by any step of any `torch.optim` optimizer, because fused ones raise no version.
    What neither shows, such as `weight.data.add_(…)`, needs `forget()`.

    It may be asked by several threads. It is neither saved nor copied: a copy, or what is read from a pickle, starts empty.
    """

    def __init__(self) -> None:
        self._found: tuple[Any, list[State], State] | None = None  # one attribute, so that a reader sees all of it or none

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return type(self), ()

    def forget(self) -> None:
        """Drop what is kept, and the memory it takes."""
        self._found = None

    def get(self, sources: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` gives, now or when it was last called.

        Args:
            sources: every tensor the result depends on.
            compute: the computation; where its result is kept, it is called without gradients and outside of inference mode.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not all(map(_is_traceable, sources)):
            return compute()
        kind = sources[0].device.type
        casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        cast = torch.get_autocast_dtype(kind) if casts else None
        circumstances = (_Steps.count, cast, len(sources))
        found = self._found
        if found is not None and found[0] == circumstances:
            _, states, result = found
            if result.holds(result.tensor) and all(state.holds(tensor) for state, tensor in zip(states, sources, strict=True)):
                return result.tensor
        states = [State.of(tensor) for tensor in sources]  # before the computation: what is written meanwhile is noticed afterwards
        with torch.inference_mode(False), torch.no_grad():
            value = compute()
        self._found = (circumstances, states, State.of(value))
        return value


class _Steps:
    """How many steps optimizers of this process have made."""

    count = 0


def _count_step(*_: Any) -> None:
    _Steps.count += 1


register_optimizer_step_post_hook(_count_step)


def _is_traceable(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_inference()
