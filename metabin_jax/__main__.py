"""`python -m metabin_jax COMMAND` is `metabin COMMAND`."""

import sys

from metabin_jax.cli import main

sys.exit(main())
