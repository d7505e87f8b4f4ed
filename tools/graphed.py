"""Forward and backward of a step as one CUDA graph: for fixed shapes, where launching kernels is what takes long."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.random import BatchRandom

WARM_UP = 3  # steps outside of the graph: kernels are compiled, memory is found
Batch = dict[str, Tensor]


class GraphedStep:
    """Calls `compute(batch)`, which gives losses and leaves gradients, once for real, then repeats it from a graph.

    Batches are copied into the places that the graph reads. Gradients stay in the graph's memory: do not set them to
    None between steps. Random numbers go on from step to step as without a graph.
    """

    def __init__(self, model: nn.Module, rng: BatchRandom, compute: Callable[[Batch], Batch]):
        self.model, self.rng, self.compute = model, rng, compute
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch) -> Batch:
        if self.graph is None:
            self._capture(batch)
        assert self.graph is not None
        for key, place in self.batch.items():
            if batch[key].shape != place.shape:
                raise UserError(
                    f"runner.compile: graph needs batches of one shape; '{key}' was {tuple(place.shape)}, now "
                    f"{tuple(batch[key].shape)}; use runner.compile=off"
                )
            place.copy_(batch[key], non_blocking=True)
        self.graph.replay()
        return {key: value.clone() for key, value in self.losses.items()}

    def _capture(self, batch: Batch) -> None:
        """Warm up on a stream of its own, undo what that did, record."""
        self.batch = {key: value.clone() for key, value in batch.items()}
        before = [buffer.clone() for buffer in self.model.buffers()]
        states = self.rng.state(), torch.cuda.get_rng_state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.model.zero_grad(set_to_none=True)
                self.compute(self.batch)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad():
            for buffer, old in zip(self.model.buffers(), before):
                buffer.copy_(old)
        self.rng.set_state(states[0])
        torch.cuda.set_rng_state(states[1])
        self.model.zero_grad(set_to_none=True)  # the recorded backward makes them anew, in the graph's memory
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.rng.generator)
        try:
            with torch.cuda.graph(graph):
                self.losses = {key: value.detach() for key, value in self.compute(self.batch).items()}
        except RuntimeError as error:
            raise UserError(
                "runner.compile: this model asks the device for numbers during a step, so it cannot become a graph "
                f"({str(error).splitlines()[0]}); use runner.compile=off"
            ) from error
        self.graph = graph
