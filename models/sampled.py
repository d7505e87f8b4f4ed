"""A sampler in front of any network: the network sees the sample, the sampler learns from the network's loss.

B clouds, N points.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from models.layers.extra import WithLosses
from models.samplers.base import Sampled, Sampler, draws
from utils.errors import UserError

NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm)


class SampledNetwork(nn.Module):
    """frozen: the network is as it was trained (`--ckpts`), and only the sampler learns; else both do.

    task_bn: how a frozen network normalises while the sampler trains: "eval" by its running statistics, "batch" by the
    batch, the statistics untouched (as the published reconstruction does).
    sampled: how many of the clouds that the network takes are sampled, the last ones first (1 of a registration's two:
    the source); 0: all.
    """

    def __init__(
        self,
        sampler: Sampler,
        network: nn.Module,
        frozen: bool = True,
        task_bn: Literal["eval", "batch"] = "eval",
        sampled: int = 0,
    ):
        super().__init__()
        for name, part in (("sampler", sampler), ("network", network)):
            if not isinstance(part, nn.Module):
                raise UserError(f"{name}: needs a mapping with a 'name', found {part!r}")
        self.sampler, self.network, self.frozen, self.task_bn, self.sampled = sampler, network, frozen, task_bn, sampled
        if frozen:
            network.requires_grad_(False)
        if frozen and task_bn == "batch":
            for module in self._norms():
                module.momentum = 0.0

    def _norms(self) -> list[Any]:
        return [module for module in self.network.modules() if isinstance(module, NORMS)]

    def train(self, mode: bool = True) -> SampledNetwork:
        """A frozen network stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
            if mode and self.task_bn == "batch":
                for module in self._norms():
                    module.train()
        return self

    @property
    def num_features(self) -> int:
        return self.network.num_features  # type: ignore[return-value]

    def forward(self, *clouds: Tensor) -> Any:
        """What the network says to the samples; while training together with the sampler's losses."""
        samples = self.sample(*clouds)
        if not self.training:
            return self.network(*(sample.points for sample in samples))
        sizes = self.sampler.sizes or (None,)
        answers = [self._answer(*(sample.points[:, :size] for sample in samples)) for size in sizes]
        terms = mean_losses([sample.losses for sample in samples if sample.losses])
        own = mean_losses([answer.losses for answer in answers if answer.losses], self.sampler.summed)
        losses = {**terms, **own}
        if terms and own:
            losses["loss"] = terms["loss"] + own["loss"]
        return WithLosses(tuple(answer.answers[0] for answer in answers), losses, self.sampler.summed)

    def _answer(self, *clouds: Tensor) -> WithLosses:
        """Of the network, with the losses it brings along."""
        if hasattr(self.network, "with_losses"):
            return self.network.with_losses(*clouds)  # type: ignore[operator]
        return WithLosses((self.network(*clouds),), {})

    def sample(self, *clouds: Tensor) -> list[Sampled]:
        """Samples of the clouds (B, N, 3), the last one first drawn; clouds that are not sampled pass as they are."""
        kept = len(clouds) - (self.sampled or len(clouds))
        # one source of random numbers: the two clouds of a pair must not get the same points by accident
        rng = None if self.training else draws(False, clouds[0], None)
        drawn = [
            self.sampler(cloud, rng) if place >= kept else Sampled(cloud, cloud, None, {})
            for place, cloud in reversed(list(enumerate(clouds)))
        ]
        return drawn[::-1]

    def unsampled(self, *clouds: Tensor) -> Any:
        """What the network says to the whole clouds."""
        return self.network(*clouds)

    def forward_features(self, points: Tensor) -> Tensor:
        return self.network.forward_features(self.sample(points)[0].points)  # type: ignore[operator]

    def encode(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> the network's vector of the sample."""
        return self.network.encode(self.sample(points)[0].points)  # type: ignore[operator]

    def retrieval_vector(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> the network's vector for retrieval, of the sample."""
        vector = getattr(self.network, "retrieval_vector", self.network.encode)
        return vector(self.sample(points)[0].points)  # type: ignore[operator]

    def key_map(self, key: str) -> str | None:
        """Weights of the whole, ours or official (`sampler.` beside the network's own names), or of the network."""
        for part in ("sampler", "network"):
            if key.startswith(part + "."):
                return prefixed(part, getattr(self, part), key.removeprefix(part + "."))
        return prefixed("network", self.network, key)


def prefixed(part: str, module: nn.Module, key: str) -> str | None:
    renamed = module.key_map(key) if hasattr(module, "key_map") else key  # type: ignore[operator]
    return None if renamed is None else f"{part}.{renamed}"


def mean_losses(each: list[dict[str, Tensor]], summed: bool = False) -> dict[str, Tensor]:
    """Term by term over several clouds or samples."""
    if not each:
        return {}
    scale = 1 if summed else 1 / len(each)
    return {key: sum(losses[key] for losses in each) * scale for key in each[0]}  # type: ignore[misc]
