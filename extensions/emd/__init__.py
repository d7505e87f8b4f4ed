"""Earth mover's distance: the soft plan of approxmatch, and a nearly exact assignment by auction."""

from .approxmatch import approx_match, match_cost
from .auction import auction_match
from .emd import earth_mover_distance

__all__ = ["approx_match", "auction_match", "earth_mover_distance", "match_cost"]
