"""Batches of a data set: the order is a function of seed and epoch, so a run can continue anywhere, on any process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from datasets.base import PointClouds
from utils import dist
from utils.errors import UserError


class Loader:
    """Reads one batch ahead in a background thread, or keeps the whole set on the device (`resident`).

    batch_size counts the clouds of all processes together; each process gets its share of every batch.
    train: shuffled, incomplete last batch left out. Otherwise in order, everything.
    """

    def __init__(
        self,
        dataset: PointClouds,
        batch_size: int,
        device: torch.device,
        *,
        train: bool = False,
        seed: int = 0,
        resident: bool = False,
    ):
        self.dataset, self.device, self.train, self.seed = dataset, device, train, seed
        self.rank, self.world = dist.rank(), dist.world_size()
        self.batch_size = batch_size
        if batch_size < 1:
            raise UserError(f"data.{'' if train else 'eval_'}batch_size: {batch_size}; use at least 1")
        if train:
            self._check_sizes()
        kept = dataset.made and device.type == "cpu"  # in memory already, as soon as they are made
        self.resident = self._whole(0) if resident and not kept else None
        self.resident_epoch = 0

    def _check_sizes(self) -> None:
        if self.batch_size % self.world:
            raise UserError(f"data.batch_size: {self.batch_size} clouds cannot be shared by {self.world} processes")
        if self.batch_size // self.world < 2:
            raise UserError("data.batch_size: BatchNorm needs at least 2 clouds in each process")
        if len(self.dataset) < self.batch_size:
            raise UserError(
                f"data.batch_size: {self.batch_size} is more than the {len(self.dataset)} clouds of "
                f"'{self.dataset.name}' ({self.dataset.split}); use a smaller batch"
            )

    def __len__(self) -> int:
        return len(self.dataset) // self.batch_size if self.train else -(-len(self.dataset) // self.batch_size)

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of one epoch, on the device; `skip` leaves out the first ones."""
        shares = [self._share(batch) for batch in self._global_batches(epoch)[skip:]]
        batches = [share for share in shares if len(share)]
        if not batches:  # fewer clouds than processes
            return
        draws = self._draws(epoch)
        if self.resident is not None:
            if draws is not None and epoch != self.resident_epoch:
                self.resident, self.resident_epoch = self._whole(epoch), epoch
            order = torch.from_numpy(np.concatenate(batches)).to(self.device)  # once an epoch: a copy waits
            for rows in order.split([len(positions) for positions in batches]):
                yield {key: value[rows] for key, value in self.resident.items()}
            return
        with ThreadPoolExecutor(1) as reader:

            def read(positions: np.ndarray) -> Future:
                return reader.submit(self.dataset.fetch, positions, None if draws is None else draws[positions])

            ahead = [read(positions) for positions in batches[:1]]
            for following in [*batches[1:], None]:
                batch = ahead.pop().result()
                if following is not None:
                    ahead.append(read(following))
                yield _move(batch, self.device)

    def _global_batches(self, epoch: int) -> list[np.ndarray]:
        order = np.arange(len(self.dataset))
        if self.train:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        return [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self))]

    def _draws(self, epoch: int) -> np.ndarray | None:
        """One number per cloud that chooses the points read in this epoch, where there is a choice; training only."""
        if not (self.train and self.dataset.windowed):
            return None
        return np.random.default_rng([self.seed, epoch, 1]).random(len(self.dataset))

    def _whole(self, epoch: int) -> dict[str, Tensor]:
        return _move(self.dataset.fetch(np.arange(len(self.dataset)), self._draws(epoch)), self.device)

    def _share(self, batch: np.ndarray) -> np.ndarray:
        return np.array_split(batch, self.world)[self.rank]


def _move(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
