"""Templates to one HTML file that needs no other and runs no script but its own."""

import base64
import hashlib
import io
import math
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def render(template: str, **values: Any) -> str:
    """The page of a template of this folder, with `values` and with style, script and script_hash."""
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
        **values,
    )
    # Undecodable bytes of a file name are surrogates, which no UTF-8 file can hold.
    return page.encode("utf-8", "replace").decode("utf-8")


def percent(fraction: float) -> str:
    return "n/a" if np.isnan(fraction) else f"{100 * fraction:.1f}"


def thumbnail(image: NDArray[np.uint8] | Image.Image) -> str:
    """A JPEG of the image's size, as the address of an image."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
