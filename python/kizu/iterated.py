"""A program of two graphs, one that makes a state and one that is run on it again and again, as one program.

The graphs are those of ``kizu.variants.iteration``: ``start`` reads x and writes the state, ``step`` reads x and the
state and writes the next state, the outputs and the loss (N,). The state lies in two sets of buffers that the steps
read and write in turn, so that between steps nothing is copied or allocated.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from kizu.engine import CpuProgram, CudaProgram, DeviceTensor, TensorSpec
from kizu.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from kizu.bundle import Iteration
    from kizu.engine import Buffers, ExecutionContext, Program, Runner

_NEXT, _LOSS = "next_", "loss"
_ALIGNMENT = 256  # bytes, of tensors in device memory


def iterated(start: Program, step: Program, iteration: Iteration, max_batch: int) -> Program:
    """The program of two loaded graphs of one engine, which it closes.

    Args:
        start: the graph that makes the state.
        step: the one that is run on it.
        iteration: how often the step is run, and when it stops before.
        max_batch: the largest batch.

    Raises:
        EngineError: the graphs do not fit one another.
    """
    if isinstance(start, CudaProgram) and isinstance(step, CudaProgram):
        return _OnCuda(start, step, iteration, max_batch)
    assert isinstance(start, CpuProgram)
    assert isinstance(step, CpuProgram)
    return _OnCpu(start, step, iteration)


class _Tensors:
    """What the two graphs read and write.

    Attributes:
        state: the tensors of the state that change.
        same: those that stay as ``start`` made them; outputs of the program.
        found: what ``step`` writes besides the state and the loss; outputs of the program.
    """

    def __init__(self, start: Program, step: Program, iteration: Iteration) -> None:
        state = {tensor.name: tensor for tensor in start.outputs}
        made = {tensor.name: tensor for tensor in step.outputs}
        after = {name: made[_NEXT + name] for name in state if _NEXT + name in made}
        self.state = tuple(state[name] for name in after)
        self.same = tuple(tensor for name, tensor in state.items() if name not in after)
        self.found = tuple(t for name, t in made.items() if name != _LOSS and not name.startswith(_NEXT))
        fits = (
            [tensor.name for tensor in start.inputs] == ["x"]
            and set(state) == set(iteration.state)
            and set(step.inputs) == {*start.inputs, *start.outputs}
            and all((t.shape, t.dtype) == (state[name].shape, state[name].dtype) for name, t in after.items())
            and {name for name in made if name.startswith(_NEXT)} == {_NEXT + name for name in after}
            and _LOSS in made
            and made[_LOSS].shape == (None,)
        )
        if not fits:
            raise EngineError(
                f"the graphs of the iteration do not fit one another: start makes {', '.join(state)}, and step reads "
                f"{', '.join(t.name for t in step.inputs)} and makes {', '.join(made)}; export the bundle anew"
            )
        self.loss = made[_LOSS]


class _OnCpu(CpuProgram):
    def __init__(self, start: CpuProgram, step: CpuProgram, iteration: Iteration) -> None:
        self._start, self._step, self._iteration = start, step, iteration
        self._tensors = _Tensors(start, step, iteration)
        self.inputs = start.inputs
        self.outputs = (*self._tensors.same, *self._tensors.found)

    def bind(self, inputs: Buffers, outputs: Buffers) -> Runner:
        """See ``CpuProgram``."""
        n = len(inputs["x"])
        sets = [{tensor.name: _zeros(tensor, n) for tensor in self._tensors.state} for _ in range(2)]
        same = {tensor.name: outputs[tensor.name] for tensor in self._tensors.same}
        found = {tensor.name: outputs[tensor.name] for tensor in self._tensors.found}
        loss = _zeros(self._tensors.loss, n)
        steps = [
            self._step.bind(
                {**inputs, **same, **sets[i]},
                {**{_NEXT + name: array for name, array in sets[1 - i].items()}, **found, _LOSS: loss},
            )
            for i in range(2)
        ]
        start = self._start.bind(inputs, {**same, **sets[0]})
        if self._iteration.tolerance:
            return _Stopping(start, steps, self._iteration, found, loss)
        return _Runner(start, steps, self._iteration.steps + 1)

    def close(self) -> None:
        """Close both graphs."""
        self._start.close()
        self._step.close()


class _Runner:
    """Runs the start once and the steps in turn."""

    def __init__(self, start: Runner, steps: list[Runner], count: int) -> None:
        self._start, self._steps, self._count = start, steps, count

    def run(self) -> None:
        self._start.run()
        for k in range(self._count):
            self._steps[k % 2].run()


class _Stopping:
    """The same, until the loss of every image has stalled; each keeps the outputs of the step at which its own did."""

    def __init__(
        self, start: Runner, steps: list[Runner], iteration: Iteration, found: Buffers, loss: NDArray[np.float32]
    ) -> None:
        self._start, self._steps, self._iteration = start, steps, iteration
        self._found, self._loss = found, loss
        self._kept = {name: np.zeros_like(array) for name, array in found.items()}
        self._losses = np.zeros((iteration.patience + 1, len(loss)), np.float32)

    def run(self) -> None:
        self._start.run()
        losses, patience = self._losses, self._iteration.patience
        going = np.ones(len(self._loss), bool)
        for k in range(self._iteration.steps + 1):
            self._steps[k % 2].run()
            losses[k % len(losses)] = self._loss
            if k < patience:
                continue
            before = losses[(k - patience) % len(losses)]
            fell = before - self._loss > self._iteration.tolerance * before
            self._copy(self._found, self._kept, going & ~fell)
            going &= fell
            if not going.any():
                break
        self._copy(self._kept, self._found, ~going)

    @staticmethod
    def _copy(source: Buffers, to: Buffers, images: NDArray[np.bool_]) -> None:
        for i in np.flatnonzero(images):
            for name, array in source.items():
                to[name][i] = array[i]


class _OnCuda(CudaProgram):
    """The state lies in the workspace, behind what the two graphs work in."""

    def __init__(self, start: CudaProgram, step: CudaProgram, iteration: Iteration, max_batch: int) -> None:
        self._start, self._step, self._iteration = start, step, iteration
        self._tensors = _Tensors(start, step, iteration)
        self.inputs = start.inputs
        self.outputs = (*self._tensors.same, *self._tensors.found)
        own = _aligned(max(start.workspace, step.workspace))
        self._places: list[dict[str, int]] = [{}, {}]  # offsets in the workspace
        for places in self._places:
            for tensor in (*self._tensors.state, self._tensors.loss):
                places[tensor.name] = own
                own += _aligned(max_batch * _image_bytes(tensor))
        self.workspace = own

    def context(self, tensors: Mapping[str, DeviceTensor], workspace: int) -> ExecutionContext:
        """See ``CudaProgram``."""
        n = tensors["x"].shape[0]

        def placed(tensor: TensorSpec, i: int) -> DeviceTensor:
            shape = (n, *(size or 1 for size in tensor.shape[1:]))
            return DeviceTensor(workspace + self._places[i][tensor.name], shape, tensor.dtype)

        fixed = {tensor.name: tensors[tensor.name] for tensor in (*self.inputs, *self._tensors.same)}
        found = {tensor.name: tensors[tensor.name] for tensor in self._tensors.found}
        sets = [{tensor.name: placed(tensor, i) for tensor in self._tensors.state} for i in range(2)]
        steps = []
        for i in range(2):
            after = {_NEXT + name: tensor for name, tensor in sets[1 - i].items()}
            written = {**after, **found, _LOSS: placed(self._tensors.loss, i)}
            steps.append(self._step.context({**fixed, **sets[i], **written}, workspace))
        return _Context(self._start.context({**fixed, **sets[0]}, workspace), steps, self._iteration.steps + 1)

    def close(self) -> None:
        """Close both graphs."""
        self._start.close()
        self._step.close()


class _Context:
    """Enqueues the start once and the steps in turn."""

    def __init__(self, start: ExecutionContext, steps: list[ExecutionContext], count: int) -> None:
        self._start, self._steps, self._count = start, steps, count

    def enqueue(self, stream: int) -> None:
        """See ``ExecutionContext``."""
        self._start.enqueue(stream)
        for k in range(self._count):
            self._steps[k % 2].enqueue(stream)

    def capturable(self, stream: int) -> bool:
        """See ``ExecutionContext``."""
        return all(context.capturable(stream) for context in (self._start, *self._steps))


def _zeros(tensor: TensorSpec, n: int) -> NDArray[np.float32]:
    return np.zeros((n, *(size or 1 for size in tensor.shape[1:])), np.float32)


def _image_bytes(tensor: TensorSpec) -> int:
    return math.prod(size or 1 for size in tensor.shape[1:]) * np.dtype(tensor.dtype).itemsize


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
