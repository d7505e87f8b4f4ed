"""Samplers by name: which M of N points a network gets. `sampler: {name: samplenet, num_out: 32}` in a YAML file."""

from utils.registry import Registry

SAMPLERS = Registry(
    "sampler",
    {
        "random": "models.samplers.plain:RandomSampler",
        "fps": "models.samplers.plain:FPSSampler",
        "samplenet": "models.samplers.samplenet:SampleNet",
        "samplenet_progressive": "models.samplers.progressive:ProgressiveSampleNet",
        "ass": "models.samplers.ass:ASSSampler",
    },
    sizes=True,
)
