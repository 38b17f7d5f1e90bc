"""The commands about training. They import late, so that --help is quick."""

import argparse
import math
import os
from typing import TYPE_CHECKING

from metabin_jax.cli.options import (
    CONFIG,
    DISTRIBUTED,
    FIELDS,
    MODEL,
    SIZE,
    check_output,
    command,
    option,
    output,
)
from metabin_jax.runtime.errors import counted, few, printable

if TYPE_CHECKING:
    from ml_collections import ConfigDict

DATA_DIR = "~/tensorflow_datasets"  # the default of tensorflow-datasets


@command(
    CONFIG,
    option("--workdir", required=True, metavar="DIR", help="a folder for checkpoints, metrics and the config"),
    DISTRIBUTED,
    FIELDS,
)
def train(options: argparse.Namespace) -> None:
    """Train a model, or resume a stopped run.

    The same command resumes a stopped run from its last checkpoint.

    configs:
      metabin         the paper's setting (PRESET: paper, the default, or official)
      benchmark       a benchmark of the field (PRESET: paper, p1, ...), on sets prepared by metabin prepare
      folder          your own folder of domains, a small net from scratch
      people          your own folder of people, from pretrained weights
      finetune        your own folder of anything, from pretrained weights
      demo            the embedded synthetic set
      networks        six networks of 200 synthetic people, for a GPU
    All fields with their sources are in metabin_jax/training/config.py. A Python file has get_config(PRESET).

    examples:
      metabin train --config=folder --workdir=runs/mine --config.data.path=pictures --config.data.eval_domains=south
      metabin train --config=benchmark:paper --workdir=runs/table1 --config.init=mobilenetv2_1.4.pth
      metabin train --config=configs/mine.py --workdir=runs/mine
    """
    config = _config(options)
    _start(options.distributed)
    from metabin_jax.training.train import train

    _print_results(train(config, options.workdir), options.workdir)


@command(MODEL, SIZE, DISTRIBUTED, FIELDS)
def evaluate(options: argparse.Namespace) -> None:
    """Evaluate a run on the domains that its config names, or on others.

    The fields of data, eval and selection can be changed; the training fixed all others.

    examples:
      metabin evaluate --model=runs/mine --config.data.eval_domains=north,south
      metabin evaluate --model=runs/mine --config.data.path=elsewhere --config.eval.policy=ignore
      metabin evaluate --model=osnet_x1_0.pth --config.data.path=pictures --config.data.eval_domains=north
      metabin evaluate --model=runs/mine --config.eval.rerank=True --config.eval.query_expansion=5
    """
    config = _config(options)
    _start(options.distributed)
    from metabin_jax.training.evaluate import evaluate

    _print_results(evaluate(config, options.model), options.model)


@command(MODEL, SIZE, *output("the page (default: report.html in RUN, FILE-report.html beside FILE)"), FIELDS)
def report(options: argparse.Namespace) -> None:
    """Write one HTML page about a run: metrics, ranked lists, rho, training curves.

    The page holds small copies of the images it shows and needs no network. With --config.data.eval_domains= it is
    about the training alone. Needs jinja2.

    example:
      metabin report --model=runs/mine --output=mine.html
    """
    config = _config(options)
    from metabin_jax.report import write_report
    from metabin_jax.training.trained import beside

    output = check_output(options, beside(options.model, "report.html"))

    print(write_report(config, options.model, output))


@command(
    MODEL,
    SIZE,
    option("--to", required=True, metavar="FORMAT", help="stablehlo, onnx, tflite or tflite-int8"),
    option(
        "--layout",
        default="nhwc-uint8",
        choices=("nhwc-uint8", "nchw-float"),
        help="of the input; nchw-float is for --to=onnx and for programs that feed normalised float32 [N, 3, H, W]",
    ),
    *output("the exported file", required=True),
    FIELDS,
)
def export(options: argparse.Namespace) -> None:
    """Write the net of a run to a file that runs without this package.

    formats:
      stablehlo       for JAX on CPU, CUDA and TPU: jax.export.deserialize(bytearray(content)).call(image)
      onnx            for ONNX Runtime and others; needs onnx and onnxruntime
      tflite          for LiteRT (TensorFlow Lite); needs ai-edge-litert and litert-converter
      tflite-int8     tflite with convolutions in int8, calibrated on the images below; needs litert-quantizer too

    Input `image`: uint8 RGB [N, H, W, 3] at the size of the training, any N, unless --layout says otherwise. Output
    `embedding`: float32 [N, D] of length 1, the feature after BNNeck. Norm layers whose rho is 1 in every channel are
    part of their convolution.

    The file is run on the images of config.data.eval_domains, or on synthetic people if that is empty. A difference
    from JAX above 1e-4 (tflite-int8: 0.1) in an embedding fails and leaves no file.

    example:
      metabin export --model=runs/mine --to=onnx --output=mine.onnx
    """
    config = _config(options)
    output = check_output(options)
    from metabin_jax.export import export

    step, trials = export(config, options.model, options.to, output, options.layout)
    for trial in trials:
        before, after = 100 * trial.mAP_jax, 100 * trial.mAP_file
        print(
            f"{trial.domain}: {trial.images} images, largest difference from JAX {trial.difference:.1e}, "
            f"mAP {before:.2f} % in JAX and {after:.2f} % from the file ({round(after - before, 2) + 0:+.2f})"
        )
    print(f"step {step} of {options.model} is in {options.output}")


@command(
    option("name", metavar="NAME", help="a published data set, all or folder"),
    option("--manual_dir", required=True, metavar="DIR", help="holds the unpacked sets, or your domains"),
    option("--data_dir", default=DATA_DIR, metavar="DIR", help=f"for the prepared sets (default: {DATA_DIR})"),
    option("--allow_incomplete", action="store_true", help="prepare a set whose counts differ from the published ones"),
)
def prepare(options: argparse.Namespace) -> None:
    """Pack published data sets, or a folder of domains, into a few files each, and check them.

    names:
      cuhk01, cuhk02, cuhk03, market1501, dukemtmcreid, cuhk03np,
      cuhksysu, msmt17, viper, prid2011, grid, ilids
      all             those of them that manual_dir holds
      folder          your own domains: one sub-folder of manual_dir each
    Nothing is downloaded.

    examples:
      metabin prepare all --manual_dir=downloads
      metabin train --config=benchmark --workdir=runs/table1 --config.data.path=DATA_DIR
    """
    from metabin_jax.data.sets.prepare import prepare

    prepare(options.name, options.manual_dir, options.data_dir, options.allow_incomplete)


@command(
    CONFIG,
    option("--target", required=True, metavar="CARD", help="h100, h200, a100, a100_40gb or rtx4090"),
    option("--devices", type=int, default=1, metavar="N", help="cards that share each batch (default: 1)"),
    option("--identities", type=int, default=18_530, metavar="N", help="of all sources (default: 18530, the paper's)"),
    option("--domains", type=int, default=5, metavar="N", help="sources, if the config names none (default: 5)"),
    FIELDS,
)
def plan(options: argparse.Namespace) -> None:
    """Say what a training will need of a GPU, without one.

    Compiles the training step for the card, which need not be there, and prints the memory it needs: in bfloat16 and
    in float32, with the first-order and with the exact meta-gradient, a minute or more each. Needs jax[cuda12].

    example:
      metabin plan --config=metabin --target=h100 --devices=8
    """
    config = _config(options)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA calls it an error that a program takes minutes to compile
    import jax

    jax.config.update("jax_platforms", "cpu")  # leaves a GPU of this machine alone
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot load programs of a card that is not there
    from metabin_jax.plan import find_target, plan
    from metabin_jax.training.sketch import sketch, variants

    target = find_target(options.target)
    runs = [(name, sketch(variant, options.identities, options.domains)) for name, variant in variants(config)]
    for line in plan(runs, target, options.devices):
        print(line, flush=True)


def _config(options: argparse.Namespace) -> "ConfigDict":
    """The config of the run that --model names, or the one that --config names, with the fields that are given."""
    from metabin_jax.cli.config_files import load_config, trained_config

    given = {name.removeprefix("config."): text for name, text in vars(options).items() if name.startswith("config.")}
    fields = {field: text for field, text in given.items() if text is not None}  # FIELD itself is None
    if "model" not in options:
        return load_config(options.config, fields)
    return trained_config(options.model, fields, options.size)


def _start(distributed: bool) -> None:
    if distributed:
        from metabin_jax.runtime.devices import start

        start()


def _print_results(results: dict, workdir: str) -> None:
    from metabin_jax.runtime.devices import is_first

    if not is_first():
        return
    if results["targets"]:
        from metabin_jax.evaluation import Verification
        from metabin_jax.evaluation.tables import console

        print(printable(console(results["benchmark"])))
    for domain, scores in results["targets"].items():
        unmatched = scores["unmatched"]
        if unmatched:
            named = printable(few(unmatched, 3))
            print(
                f"{domain}: {counted(len(unmatched), 'query', 'queries')} without a valid match, not counted: {named}"
            )
        pairs: dict = {name: math.nan if value is None else value for name, value in scores["verification"].items()}
        print(f"{domain}: verification: {Verification(**pairs)}")
    file = results["file"]
    files = f"{file} and {file.removesuffix('json')}md" if results["targets"] else f"and {file}"
    print(f"step {results['step']}; metrics, checkpoints, {files} are in {workdir}")
