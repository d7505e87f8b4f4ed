"""General machinery: configuration, registry, checkpoints, logging. Knows nothing of points."""
