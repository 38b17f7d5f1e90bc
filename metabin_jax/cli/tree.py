"""The command line: metabin COMMAND, see USAGE."""

import sys
from collections.abc import Callable

from metabin_jax.cli import commands
from metabin_jax.cli.options import Parser, load_config, not_empty, override_all, parse, trained_config
from metabin_jax.data.sets.catalogue import SETS
from metabin_jax.runtime.errors import UserError

DATA_DIR = "~/tensorflow_datasets"  # the default of tensorflow-datasets

USAGE = """usage: metabin COMMAND [options]

commands:
  train      train from a config, resuming by itself from a workdir that has a checkpoint
  evaluate   evaluate a trained workdir on the domains named in its config, or on others
  report     write one HTML page about a trained workdir: metrics, ranked lists, rho, training curves
  prepare    pack published data sets, or a folder of domains, into a few files each, checked on the way
  export     write a trained workdir's net to a file that runs without this package
  embed      the features of a folder of images, or of a CSV list of them, into a file
  search     the most similar images of a gallery, with "same person" or "different" by a threshold
  calibrate  the threshold for a false accept rate, from labelled images
  doctor     say what a folder or CSV manifest of images holds, and what is wrong with it
  plan       say what a training will need of a GPU, without one

metabin COMMAND --help lists the options of a command."""

TRAIN_HELP = """usage: metabin train --config=FILE[:PRESET] --workdir=DIR [--distributed] [--config.FIELD=VALUE ...]

  --config=configs/metabin.py            the paper's setting (PRESET: paper, the default, or official)
  --config=configs/benchmark.py:paper    a benchmark of the field, on sets made ready by metabin prepare
  --config=configs/folder.py             your own folder of domains, a small net from scratch
  --config=configs/finetune.py           your own folder of domains, from ImageNet weights
  --config=configs/demo.py               the embedded synthetic set
  --workdir=DIR                          checkpoints, metrics and config go here; a run found here goes on
  --distributed                          this is one of several processes of the same command, see docs/devices.md
  --config.init=FILE                     start from weights: torchreid's, torchvision's, timm's, the released MetaBIN's
  --config.data.path=DIR                 any field of the config, by its path
  --config.data.eval_domains="('a',)"    tuples as in Python

The fields and their sources stand in metabin_jax/config.py."""

EVALUATE_HELP = """usage: metabin evaluate --workdir=DIR [--distributed] [--config.FIELD=VALUE ...]

  --workdir=DIR                          a workdir of `metabin train`; its config is taken as it is, except for
  --config.data.eval_domains="('a',)"    other domains,
  --config.data.path=DIR                 images elsewhere,
  --config.eval.rerank=True              re-ranking; query expansion by --config.eval.query_expansion=K,
  --config.eval.policy=ignore            or any other field of data, eval and selection
  --distributed                          this is one of several processes of the same command, see docs/devices.md"""

REPORT_HELP = """usage: metabin report RUN [--output=FILE] [--config.FIELD=VALUE ...]

  RUN                                    a workdir of `metabin train`; its config is taken as it is, except for
  --config.data.eval_domains="('a',)"    other domains; the page is about the training alone for "()",
  --config.data.path=DIR                 images elsewhere, or any other field of data, eval and selection
  --output=FILE                          where the page goes; RUN/report.html if not given

The page needs no network and no other file: it holds small copies of the images it shows. Needs jinja2."""

PREPARE_HELP = f"""usage: metabin prepare NAME --manual_dir=DIR [--data_dir=DIR] [--allow_incomplete]

  NAME                  {", ".join(list(SETS)[:6])},
                        {", ".join(list(SETS)[6:])};
                        or all: those of them that are in manual_dir; or folder: your own domains, one folder each
  --manual_dir=DIR      holds the sets as they were unpacked, or the folders; nothing is downloaded
  --data_dir=DIR        of tensorflow-datasets, where the prepared sets go (default: {DATA_DIR})
  --allow_incomplete    prepare a set whose counts are not the published ones, too

Then: metabin train --config.data.source=prepared --config.data.path=DATA_DIR ..."""

EXPORT_HELP = """usage: metabin export --workdir=DIR --to=FORMAT --output=FILE [--config.FIELD=VALUE ...]

  --workdir=DIR       a workdir of `metabin train`; its selected checkpoint is exported, in float32
  --to=stablehlo      for JAX on CPU, CUDA and TPU: jax.export.deserialize(bytearray(content)).call(image)
  --to=onnx           for ONNX Runtime and others; needs onnx and onnxruntime
  --to=tflite         for LiteRT (TensorFlow Lite); needs ai-edge-litert and litert-converter
  --to=tflite-int8    the same with convolutions in int8, calibrated on the images below; needs litert-quantizer too
  --output=FILE       gets its name when it is complete and has been tried; a file of that name is replaced
  --config.FIELD      any field of data or eval, as in `metabin evaluate`

Input `image`: uint8 RGB [N, H, W, 3] at the size of the training, any N; output `embedding`: float32 [N, D] of length
1, the feature after BNNeck. Norm layers whose rho is 1 in every channel are part of their convolution. The file is
loaded again and run on the images of config.data.eval_domains, or on drawn ones where it names none; the largest
difference from JAX and both mAPs are printed. A difference above 1e-4 (tflite-int8: 0.1) fails and leaves none."""

DOCTOR_HELP = """usage: metabin doctor PATH

  PATH    a published data set as it was unpacked, a folder of domains, or a CSV manifest

Prints which set it is and its counts against the published ones, what each split holds, the queries without a valid
match and why, and broken and duplicate images."""

PLAN_HELP = """usage: metabin plan --config=FILE[:PRESET] --target=CARD [--devices=N] [--identities=N]
                    [--domains=K] [--config.FIELD=VALUE ...]

  --config=FILE[:PRESET]    as in `metabin train`; no data is needed
  --target=CARD             h100, h200, a100, a100_40gb or rtx4090
  --devices=1               how many of them, in one host, share the rows of each batch
  --identities=18530        of all sources together, which sizes the classifier (default: the paper's five sources)
  --domains=5               how many sources, where config.data.train_domains does not name them
  --config.FIELD=VALUE      any field of the config

Compiles the training step for the card, which need not be there, in bfloat16 and float32, with the first-order and the
exact meta-gradient (a minute or more each), and prints a row for each: peak memory; whether it fits into the 75 % of
the card that JAX takes; what all kernels move, and the norm layers in forward passes; how many kernels there are, and
convolutions of cuDNN, whose workspaces come on top. Float64 in the step, or a transfer to the host, is an error. For
more devices than one the rows are about each of them, and under the table stands what they send each other and how much
faster than one device that lets them be; every variant is compiled for one device, too. Needs jax[cuda12]."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit status; errors of the user's are one sentence and exit status 2."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if command not in COMMANDS:
        print(f"metabin: there is no command {command!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    run, usage = COMMANDS[command]
    if {"-h", "--help"} & set(rest):
        print(usage)
        return 0
    try:
        return run(rest) or 0
    except (UserError, OSError) as error:
        print(f"metabin {command}: {error}", file=sys.stderr)
        return 2


def train(arguments: list[str]) -> None:
    distributed, arguments = _take_distributed(arguments)
    options, fields = parse(arguments, "--config", "--workdir")
    config = load_config(options["config"])
    override_all(config, fields)
    _start(distributed)
    from metabin_jax.training.train import train

    _print_results(train(config, options["workdir"]), options["workdir"])


def evaluate(arguments: list[str]) -> None:
    distributed, arguments = _take_distributed(arguments)
    options, fields = parse(arguments, "--workdir")
    config = trained_config(options["workdir"], fields)
    _start(distributed)
    from metabin_jax.training.evaluate import evaluate

    _print_results(evaluate(config, options["workdir"]), options["workdir"])


def export(arguments: list[str]) -> None:
    options, fields = parse(arguments, "--workdir", "--to", "--output")
    config = trained_config(options["workdir"], fields)
    from metabin_jax.export import export

    step, trials = export(config, options["workdir"], options["to"], options["output"])
    for trial in trials:
        before, after = 100 * trial.mAP_jax, 100 * trial.mAP_file
        print(
            f"{trial.domain}: {trial.images} images, largest difference from JAX {trial.difference:.1e}, "
            f"mAP {before:.2f} % in JAX and {after:.2f} % from the file ({round(after - before, 2) + 0:+.2f})"
        )
    print(f"step {step} of {options['workdir']} is in {options['output']}")


def report(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        raise UserError("RUN is missing: give a workdir of metabin train first")
    workdir, *rest = arguments
    options, fields = parse([f"--output={workdir}/report.html", *rest], "--output")
    config = trained_config(workdir, fields)
    from metabin_jax.report import write_report

    print(write_report(config, workdir, options["output"]))


def prepare(arguments: list[str]) -> None:
    parser = Parser()
    parser.add_argument("name")
    parser.add_argument("--manual_dir", required=True, type=not_empty)
    parser.add_argument("--data_dir", default=DATA_DIR, type=not_empty)
    parser.add_argument("--allow_incomplete", action="store_true")
    options = parser.parse_args(arguments)
    from metabin_jax.data.sets.prepare import prepare

    prepare(options.name, options.manual_dir, options.data_dir, options.allow_incomplete)


def doctor(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise UserError("give one PATH: a data set, a folder of domains or a CSV manifest")
    from metabin_jax.report.doctor import examine

    for line in examine(arguments[0]):
        print(line)


def plan(arguments: list[str]) -> None:
    parser = Parser()
    parser.add_argument("--identities", type=int, default=18_530)
    parser.add_argument("--domains", type=int, default=5)
    parser.add_argument("--devices", type=int, default=1)
    numbers, rest = parser.parse_known_args(arguments)
    options, fields = parse(rest, "--config", "--target")
    config = load_config(options["config"])
    override_all(config, fields)
    import jax

    jax.config.update("jax_platforms", "cpu")  # a GPU that is there is left alone
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot load programs of a card that is not there
    from metabin_jax.plan import find_target, plan

    for line in plan(config, find_target(options["target"]), numbers.identities, numbers.domains, numbers.devices):
        print(line, flush=True)


COMMANDS: dict[str, tuple[Callable[[list[str]], int | None], str]] = {
    "train": (train, TRAIN_HELP),
    "evaluate": (evaluate, EVALUATE_HELP),
    "report": (report, REPORT_HELP),
    "prepare": (prepare, PREPARE_HELP),
    "export": (export, EXPORT_HELP),
    "embed": (commands.embed, commands.EMBED_HELP),
    "search": (commands.search, commands.SEARCH_HELP),
    "calibrate": (commands.calibrate, commands.CALIBRATE_HELP),
    "doctor": (doctor, DOCTOR_HELP),
    "plan": (plan, PLAN_HELP),
}


def _take_distributed(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether --distributed is among the arguments, and the others."""
    others = [argument for argument in arguments if argument != "--distributed"]
    return len(others) < len(arguments), others


def _start(distributed: bool) -> None:
    if distributed:
        from metabin_jax.runtime.devices import start

        start()


def _print_results(results: dict, workdir: str) -> None:
    from metabin_jax.runtime.devices import is_first

    if not is_first():
        return
    if results["targets"]:
        from metabin_jax.evaluation.tables import console

        print(console(results["benchmark"]))
    for domain, scores in results["targets"].items():
        unmatched = scores["unmatched"]
        if unmatched:
            named = ", ".join(unmatched[:3]) + (", ..." if len(unmatched) > 3 else "")
            print(f"{domain}: {len(unmatched)} queries have no valid match and do not count: {named}")
        pairs = scores["verification"]
        threshold = "n/a" if pairs["threshold"] is None else f"{pairs['threshold']:.3f}"
        print(
            f"{domain}: verification: TPR {_percent(pairs['tpr'])} at FAR {_percent(pairs['far'], 3)}, threshold "
            f"{threshold} ({pairs['num_positive']:,} positive, {pairs['num_negative']:,} negative pairs)"
        )
    file = results["file"]
    files = f"{file} and {file.removesuffix('json')}md" if results["targets"] else f"and {file}"
    print(f"step {results['step']}; metrics, checkpoints, {files} are in {workdir}")


def _percent(fraction: float | None, digits: int = 1) -> str:
    return "n/a" if fraction is None else f"{100 * fraction:.{digits}f} %"
