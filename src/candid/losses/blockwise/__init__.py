"""Softmax losses in tiles: one kernel for the full softmax and the sampled ones.

At most as many of the [B, N] scores are held in memory as fit into the caches. See
``softmax`` for the algorithm, ``tile_pass`` for the softmax of one tile and ``native`` for its
native kernel.
"""
