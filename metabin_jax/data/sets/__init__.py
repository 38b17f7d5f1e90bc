"""Published data sets: recognised on disk, read into records, checked against published counts, packed by `prepare`.

Only this room may import the packages of the extra `sets`. `metabin_jax.data` reads all other pictures.
"""
