"""SA3D: masks that aim at what is hard, features that teach. Composed of a backbone and the parts of this folder."""

from models.sa3d.sa3d import SA3D

__all__ = ["SA3D"]
