"""Softmax losses in tiles: one kernel under the full softmax and the sampled ones.

The [B, N] scores are never held at once, or no more of them than fit into the caches. See
``softmax`` for how, ``tile_pass`` for what is done to a tile, ``native`` for how that is made fast.
"""

from candid.losses.blockwise.accidental_hits import AccidentalHits, IdMatch
from candid.losses.blockwise.softmax import Others, blockwise_softmax
from candid.losses.blockwise.tiles import Precision

__all__ = ["AccidentalHits", "IdMatch", "Others", "Precision", "blockwise_softmax"]
