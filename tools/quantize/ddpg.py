"""Deep deterministic policy gradient, with the networks, targets and noise of HAQ.

S numbers in a state, one action from 0 to 1, B transitions in a batch.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.optim import Adam


class Actor(nn.Module):
    def __init__(self, states: int, hidden1: int = 300, hidden2: int = 300):
        super().__init__()
        self.fc1 = nn.Linear(states, hidden1)
        self.fc2 = nn.Linear(hidden1, hidden2)
        self.fc3 = nn.Linear(hidden2, 1)

    def forward(self, state: Tensor) -> Tensor:
        """(B, S) -> (B, 1) from 0 to 1."""
        return torch.sigmoid(self.fc3(F.relu(self.fc2(F.relu(self.fc1(state))))))


class Critic(nn.Module):
    def __init__(self, states: int, hidden1: int = 300, hidden2: int = 300):
        super().__init__()
        self.fc11 = nn.Linear(states, hidden1)
        self.fc12 = nn.Linear(1, hidden1)
        self.fc2 = nn.Linear(hidden1, hidden2)
        self.fc3 = nn.Linear(hidden2, 1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """(B, S), (B, 1) -> value (B, 1)."""
        return self.fc3(F.relu(self.fc2(F.relu(self.fc11(state) + self.fc12(action)))))


class Replay:
    """A ring of transitions in the order of time: state, action, reward and whether an episode ends there.

    Sample b is entry b with the state of entry b + 1 as what came next.
    """

    def __init__(self, limit: int, states: int):
        self.limit, self.count = limit, 0
        self.states, self.rest = torch.zeros(limit, states, dtype=torch.float64), torch.zeros(limit, 3).double()

    def __len__(self) -> int:
        return min(self.count, self.limit)

    def append(self, state: Tensor, action: float, reward: float, terminal: bool) -> None:
        place = self.count % self.limit
        self.states[place] = torch.as_tensor(state, dtype=torch.float64)
        self.rest[place] = torch.tensor([action, reward, float(terminal)], dtype=torch.float64)
        self.count += 1

    def take(self, index: Tensor) -> dict[str, Tensor]:
        """Index (B,) into what is kept, oldest first."""
        oldest = max(self.count - self.limit, 0)
        now, after = (oldest + index) % self.limit, (oldest + index + 1) % self.limit
        action, reward, terminal = self.rest[now].unbind(dim=1)
        return {
            "state": self.states[now],
            "next_state": self.states[after],
            "action": action[:, None],
            "reward": reward[:, None],
            "not_terminal": 1 - terminal[:, None],
        }

    def sample(self, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Without the entries that stand after the end of an episode: their next state belongs to another one."""
        oldest = max(self.count - self.limit, 0)
        places = torch.arange(len(self) - 1)
        after_end = self.rest[(oldest + places - 1) % self.limit, 2] > 0
        after_end[0] = self.count > self.limit  # what stood before the oldest is not known any more
        allowed = places[~after_end]
        return self.take(allowed[torch.randint(len(allowed), (size,), generator=generator)])

    def state(self) -> dict[str, Any]:
        return {"states": self.states, "rest": self.rest, "count": self.count}

    def set_state(self, state: dict[str, Any]) -> None:
        self.states, self.rest, self.count = state["states"], state["rest"], state["count"]


class DDPG:
    """Both networks, their slow copies, their optimizers, and the moving average of the rewards."""

    def __init__(
        self,
        states: int,
        hidden1: int = 300,
        hidden2: int = 300,
        lr_actor: float = 1e-4,
        lr_critic: float = 1e-3,
        tau: float = 0.01,
        discount: float = 1.0,
        init_delta: float = 0.5,
        delta_decay: float = 0.99,
        warmup: int = 20,
    ):
        self.actor, self.critic = Actor(states, hidden1, hidden2), Critic(states, hidden1, hidden2)
        self.actor_target, self.critic_target = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.actor_optimizer = Adam(self.actor.parameters(), lr=lr_actor)
        self.critic_optimizer = Adam(self.critic.parameters(), lr=lr_critic)
        self.tau, self.discount, self.warmup = tau, discount, warmup
        self.init_delta, self.delta_decay = init_delta, delta_decay
        self.average: float | None = None

    def update(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One step of both; rewards are centred by the average that already has this batch in it."""
        state, after = batch["state"].float(), batch["next_state"].float()
        action, going_on = batch["action"].float(), batch["not_terminal"].float()
        mean = float(batch["reward"].mean())
        self.average = mean if self.average is None else self.average + 0.5 * (mean - self.average)
        reward = (batch["reward"] - self.average).float()
        with torch.no_grad():
            target = reward + self.discount * going_on * self.critic_target(after, self.actor_target(after))
        value_loss = F.mse_loss(self.critic(state, action), target)
        self.critic_optimizer.zero_grad()
        value_loss.backward()
        self.critic_optimizer.step()
        policy_loss = -self.critic(state, self.actor(state)).mean()
        self.actor_optimizer.zero_grad()
        policy_loss.backward()
        self.actor_optimizer.step()
        for slow, fast in ((self.actor_target, self.actor), (self.critic_target, self.critic)):
            for old, new in zip(slow.parameters(), fast.parameters()):
                old.data.lerp_(new.data, self.tau)
        return {"value_loss": float(value_loss.detach()), "policy_loss": float(policy_loss.detach())}

    def delta(self, episode: int) -> float:
        """Width of the noise in an episode."""
        return self.init_delta * self.delta_decay ** (episode - self.warmup)

    def act(self, state: Tensor, episode: int, generator: torch.Generator) -> float:
        """Uniform while warming up; then the actor's choice with noise that stays from 0 to 1."""
        if episode <= self.warmup:
            return float(torch.rand((), generator=generator))
        with torch.no_grad():
            mean = float(self.actor(state.float()[None]))
        return truncated_normal(mean, self.delta(episode), generator)

    def networks(self) -> dict[str, Any]:
        names = ("actor", "critic", "actor_target", "critic_target", "actor_optimizer", "critic_optimizer")
        return {name: getattr(self, name) for name in names}

    def state(self) -> dict[str, Any]:
        return {**{name: each.state_dict() for name, each in self.networks().items()}, "average": self.average}

    def set_state(self, state: dict[str, Any]) -> None:
        for name, each in self.networks().items():
            each.load_state_dict(state[name])
        self.average = state["average"]


def truncated_normal(mean: float, sigma: float, generator: torch.Generator) -> float:
    """A draw from the normal distribution, cut to [0, 1]."""
    low, high = (0.5 * (1 + math.erf((end - mean) / (sigma * math.sqrt(2)))) for end in (0.0, 1.0))
    share = low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64)
    drawn = mean + sigma * math.sqrt(2) * torch.special.erfinv(2 * share - 1)
    return float(drawn.clamp(0, 1))
