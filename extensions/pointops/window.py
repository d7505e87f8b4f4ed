"""The products that attention in windows consists of. See `extensions.reference.window` for which rows a row sees."""

from torch import Tensor

from extensions.library import operators
from utils.errors import UserError

from .check import check_clouds, check_count


def window_scores(rows: Tensor, keys: Tensor, window: int) -> Tensor:
    """Products (B, n, w) of every row (B, n, C) with the keys (B, n, C) of the window around it. Differentiable."""
    rows, keys = check_clouds("window_scores", channels=None, rows=rows, keys=keys)
    _check_lengths("window_scores", rows=rows, keys=keys)
    return operators.window_scores(rows, keys, check_count("window_scores", "window", window, limit=rows.shape[1]))


def window_mix(weights: Tensor, values: Tensor) -> Tensor:
    """Sums (B, n, C) of the values (B, n, C) in the window around every row, weighted (B, n, w). Differentiable."""
    (weights,), (values,) = (
        check_clouds("window_mix", channels=None, weights=weights),
        check_clouds("window_mix", channels=None, values=values),
    )
    _check_lengths("window_mix", weights=weights, values=values)
    check_count("window_mix", "window", weights.shape[2], limit=values.shape[1])
    return operators.window_mix(weights.to(values.dtype), values)


def _check_lengths(where: str, **tensors: Tensor) -> None:
    (first, a), (second, b) = tensors.items()
    if a.shape[:2] != b.shape[:2]:
        raise UserError(f"{where}: {first} {tuple(a.shape)} and {second} {tuple(b.shape)} differ in clouds or rows")
