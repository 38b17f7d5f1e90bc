"""Templates to one HTML file that needs no other and runs no script but its own."""

import base64
import functools
import hashlib
import io
import math
from collections.abc import Callable
from importlib.resources import files
from typing import IO, Any

from metabin_jax.data.cache import upright
from metabin_jax.evaluation.thresholds import percent

LARGEST = 160, 160  # pixels of a picture


def render(template: str, file: Callable[[Any], str | IO[bytes]], **values: Any) -> str:
    """The page of a template of this folder, with `values` and with style, script, script_hash and picture.

    file: as in `picture`, which is called once for an image that several lists show.
    """
    import jinja2  # an extra

    here = files("metabin_jax.report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("metabin_jax.report", ""), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["percent"] = percent
    environment.tests["nan"] = math.isnan
    script = (here / "page.js").read_text(encoding="utf-8")
    page = environment.get_template(template).render(
        style=(here / "style.css").read_text(encoding="utf-8"),
        script=script,
        # Nothing but this very script may run, whatever a file name says.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        picture=functools.lru_cache(maxsize=4096)(functools.partial(picture, file)),
        **values,
    )
    # Undecodable bytes of a file name are surrogates, which no UTF-8 file can hold.
    return page.encode("utf-8", "replace").decode("utf-8")


def picture(file: Callable[[Any], str | IO[bytes]], image: Any) -> str:
    """The address of a JPEG of an image, upright and at most as large as LARGEST; "" if it cannot be read.

    file: of an image, what PIL opens.
    """
    try:
        small = upright(file(image))
    except Exception:  # broken files make PIL raise OSError, SyntaxError, ValueError, ...
        return ""
    small.thumbnail(LARGEST)
    small.save(jpeg := io.BytesIO(), "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
