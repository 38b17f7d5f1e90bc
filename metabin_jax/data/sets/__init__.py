"""Published data sets: recognised on disk, read into records, checked against published counts, packed by `prepare`.

This is the only room that needs the extra `sets`. Other pictures are read by `metabin_jax.data`.
"""
