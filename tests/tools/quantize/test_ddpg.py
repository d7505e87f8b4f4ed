"""The agent's parts: noise, memory, and that it learns something that can be learnt."""

import copy

import torch

from tools.quantize.ddpg import DDPG, Replay, truncated_normal


def test_noise_stays_inside_and_around_its_centre() -> None:
    generator = torch.Generator().manual_seed(0)
    for mean in (0.0, 0.3, 1.0):
        draws = torch.tensor([truncated_normal(mean, 0.2, generator) for _ in range(1500)])
        assert draws.min() >= 0 and draws.max() <= 1
        theirs = torch.normal(mean, 0.2, (40000,), generator=generator)
        theirs = theirs[(theirs >= 0) & (theirs <= 1)]
        assert abs(float(draws.mean() - theirs.mean())) < 0.02 and abs(float(draws.std() - theirs.std())) < 0.02


def test_no_sample_joins_two_episodes() -> None:
    memory = Replay(20, 1)
    for episode in range(7):
        for step in range(4):
            memory.append(torch.tensor([float(10 * episode + step)]), 0.5, 1.0, step == 3)
        memory.append(torch.tensor([10.0 * episode + 3]), 0.0, 0.0, False)  # what follows the end
    batch = memory.sample(400, torch.Generator().manual_seed(0))
    assert (batch["reward"] == 1).all()
    going_on = batch["not_terminal"][:, 0] > 0
    assert torch.equal(batch["next_state"][going_on], batch["state"][going_on] + 1)


def test_it_finds_the_better_action() -> None:
    torch.manual_seed(0)
    agent, memory = DDPG(1, 32, 32, 1e-2, 1e-2, warmup=0, discount=0.0), Replay(256, 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        state = torch.rand(1, generator=generator)
        action = float(torch.rand((), generator=generator))
        memory.append(state, action, -abs(action - float(state > 0.5)), True)
    memory.rest[:, 2] = 0  # all usable
    for _ in range(300):
        agent.update({**memory.sample(32, generator), "not_terminal": torch.zeros(32, 1)})
    low, high = agent.actor(torch.tensor([[0.1], [0.9]])).flatten().tolist()
    assert low < 0.3 and high > 0.7


def test_the_state_comes_back() -> None:
    torch.manual_seed(0)
    first, second, memory = DDPG(2, 8, 8), DDPG(2, 8, 8), Replay(16, 2)
    for _ in range(10):
        memory.append(torch.rand(2), 0.5, 1.0, False)
    first.update(memory.take(torch.arange(4)))
    second.set_state(copy.deepcopy(first.state()))
    for agent in (first, second):
        agent.update(memory.take(torch.arange(4)))
    assert all(torch.equal(a, b) for a, b in zip(first.actor.parameters(), second.actor.parameters()))
    assert first.average == second.average
