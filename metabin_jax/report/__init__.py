"""One HTML page about a trained workdir, for `metabin report`."""

from metabin_jax.runtime.errors import UserError

try:
    from metabin_jax.report.page import write_report
except ModuleNotFoundError as error:
    raise UserError(f"the report needs {error.name}: pip install 'metabin_jax[report]'") from error

__all__ = ["write_report"]
