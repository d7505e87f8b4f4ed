"""Quantized weights and activations for any network of the project: which numbers a layer may hold, and how it trains.

A quantizer makes a parametrization of a layer's weight: a small module between what is trained and what is used.
"""

from utils.registry import Registry

QUANTIZERS = Registry(
    "quantizer",
    {
        "kmeans": "models.quant.kmeans:KMeans",
        "linear": "models.quant.linear:Linear",
    },
)
