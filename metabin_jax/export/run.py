"""From a run to a file that has been loaded again and compared with JAX."""

import importlib.metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from metabin_jax.data import synthetic
from metabin_jax.data.augment import MEAN, STD
from metabin_jax.data.records import Record
from metabin_jax.evaluation import embed, query_gallery, retrieval_metrics
from metabin_jax.evaluation.protocol import CameraPolicy, QueryGallery
from metabin_jax.export.formats import FORMATS, LAYOUTS, Embed
from metabin_jax.runtime.devices import say
from metabin_jax.runtime.errors import UserError, needs
from metabin_jax.runtime.files import check_writable, whole
from metabin_jax.training import trained
from metabin_jax.training.build import load_images
from metabin_jax.training.evaluate import read_targets
from metabin_jax.training.trained import Trained

SYNTHETIC = ("underpass",)  # synthetic people, used if the config names no domain to evaluate on
BATCH = 64


class Trial(NamedTuple):
    """The file compared with JAX on one domain: the largest difference in a component, and both mAPs (fractions)."""

    domain: str
    images: int
    difference: float
    mAP_jax: float
    mAP_file: float


class Domain(NamedTuple):
    """The images to embed, uint8 [n, H, W, 3], and which rows are queries and gallery."""

    name: str
    image_NHWC: NDArray[np.uint8]
    split: QueryGallery


def export(
    config: Any, workdir: str | Path, to: str, output: str | Path, layout: str = "nhwc-uint8"
) -> tuple[int, list[Trial]]:
    """Writes the selected checkpoint of `workdir` to the file `output`; returns its step and the trials it passed.

    config: as `training.trained.load` takes it. layout: of the file's input, one of LAYOUTS.
    The file computes in float32, also if the net was trained in bfloat16.
    It is loaded again and compared with JAX on every domain that the config evaluates on, or on synthetic people. It
    takes its name only if all embeddings agree to within FORMATS[to].tolerance. Raises UserError or an OSError, and
    leaves no file then.
    """
    if to not in FORMATS:
        raise UserError(f"--to must be one of {', '.join(FORMATS)}; got {to!r}")
    if to not in LAYOUTS[layout]:
        raise UserError(f"--layout={layout} is for --to={' or '.join(LAYOUTS[layout])}; got --to={to}")
    form = LAYOUTS[layout][to]
    needs(f"--to={to}", form.extra, *form.needs, otherwise=form.otherwise)
    output = check_writable(output)
    with whole(output) as temporary:
        run = trained.load(workdir, config, dtype="float32")
        model, variables, domains = run.model, run.variables, _domains(run)
        # Otherwise GPUs and TPUs multiply in fewer bits, here and in a stablehlo file.
        with jax.default_matmul_precision("highest"):
            content = form.write(model, variables, domains[0].image_NHWC)
            temporary.write_bytes(form.label(content, facts(run, layout)) if form.label else content)
            exported = form.load(temporary)
            trials = [_try(exported, embed(model, variables, d.image_NHWC, BATCH), d) for d in domains]
        difference = max((trial.difference for trial in trials), key=lambda d: (np.isnan(d), d))
        if not difference <= form.tolerance:
            raise UserError(
                f"the {to} file differs from JAX by {difference:.1e} in an embedding, more than {form.tolerance:.0e}: "
                f"{output} was not written"
            )
    return run.step, trials


def facts(run: Trained, layout: str) -> dict[str, str]:
    """What somebody who has only the file must know."""
    height, width = run.size
    pixels = {
        "nhwc-uint8": (f"uint8 RGB [N, {height}, {width}, 3]", "inside"),
        "nchw-float": (f"float32 RGB [N, 3, {height}, {width}]", f"before: (pixel / 255 - {list(MEAN)}) / {list(STD)}"),
    }
    image, normalisation = pixels[layout]
    return {
        "input": f"image: {image}",
        "resizing": "bicubic with antialiasing (Pillow's BICUBIC), aspect ratio not kept",
        "normalisation": normalisation,
        "output": "embedding: float32 [N, D], rows of length 1; their product is the cosine similarity",
        "model": f"{run.config.method}, {run.config.model.name}",
        "run": run.workdir.name,
        "step": str(run.step),
        "weights": run.made_by["weights"],
        "made with": f"metabin_jax {importlib.metadata.version('metabin_jax')}",
        "licence": "that of the weights and of the data they were trained on",
    }


def _domains(run: Trained) -> list[Domain]:
    """What the file is tried on: the run's domains or, if it has none or they are gone, synthetic people."""
    try:
        records = read_targets(run.config)
    except FileNotFoundError as error:
        say(f"{str(error).removesuffix('.')}, so the file is compared with JAX on synthetic people")
        records = []
    if not records:
        image_NHWC, records = synthetic.generate(0, SYNTHETIC, 20, 4, run.size)
        return [_domain(f"{SYNTHETIC[0]} (synthetic)", image_NHWC, records, run.policy)]
    image_NHWC = load_images(run.config, records)
    domain = np.array([record.domain for record in records])
    rows_of = {name: np.flatnonzero(domain == name) for name in dict.fromkeys(domain.tolist())}
    return [
        _domain(name, image_NHWC[rows], [records[row] for row in rows], run.policy) for name, rows in rows_of.items()
    ]


def _domain(name: str, image_NHWC: NDArray[np.uint8], records: list[Record], policy: CameraPolicy) -> Domain:
    """Drops the images that are neither query nor gallery."""
    split = query_gallery(records, policy)
    needed = np.union1d(split.query_row, split.gallery_row)
    query_row, gallery_row = (np.searchsorted(needed, row) for row in (split.query_row, split.gallery_row))
    return Domain(name, image_NHWC[needed], split._replace(query_row=query_row, gallery_row=gallery_row))


def _try(exported: Embed, reference_ND: NDArray[np.float32], domain: Domain) -> Trial:
    # The first image alone, then batches: the file must accept any batch size.
    cuts = [1, *range(BATCH, len(domain.image_NHWC), BATCH)]
    batches = [batch for batch in np.split(domain.image_NHWC, cuts) if len(batch)]
    embedding_ND = np.concatenate([exported(batch) for batch in batches])
    reference_ND = reference_ND / np.linalg.norm(reference_ND, axis=1, keepdims=True)
    return Trial(
        domain.name,
        len(embedding_ND),
        float(np.abs(embedding_ND - reference_ND).max()),
        _mean_ap(reference_ND, domain.split),
        _mean_ap(embedding_ND, domain.split),
    )


def _mean_ap(embedding_ND: NDArray[np.float32], split: QueryGallery) -> float:
    query_QD, gallery_GD = embedding_ND[split.query_row], embedding_ND[split.gallery_row]
    return retrieval_metrics(query_QD, gallery_GD, *split.labels).mAP
