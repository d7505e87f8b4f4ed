"""General machinery: configuration, registry, checkpoints, logging. Knows nothing of points."""

from utils import threads

threads.settle()  # before torch is loaded
