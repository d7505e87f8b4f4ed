"""Samplers by name: which M of N points a task network gets. `sampler: {name: ass, num_out: 64}` in a YAML file."""

from utils.registry import Registry

SAMPLERS = Registry(
    "sampler",
    {
        "ass": "models.samplers.ass:ASSSampler",
    },
)
