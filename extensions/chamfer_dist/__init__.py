"""Chamfer distance, as a function and as the modules of that name in point cloud code."""

from .chamfer import chamfer_distance
from .modules import ChamferDistanceL1, ChamferDistanceL2, ChamferDistanceL2Split

__all__ = ["ChamferDistanceL1", "ChamferDistanceL2", "ChamferDistanceL2Split", "chamfer_distance"]
