"""Softmax losses in tiles: one kernel for the full softmax and the sampled ones.

The [B, N] scores are never held at once, or only as many of them as fit into the caches. See
``softmax`` for the algorithm, ``tile_pass`` for the softmax of one tile and ``native`` for its
native kernel.
"""
