"""All tables of docs/performance.md, one benchmark after the other; a failure of one leaves the others.

    python -m experiments.benchmarks [NAME ...]       all, or those of these names; some hours on two cores

Machines differ, so the numbers will too: compare the ratios.
"""

import argparse
import shlex
import subprocess
import sys

# Name -> the arguments of experiments.benchmarks.NAME for which the page has a table.
TABLES: dict[str, list[str]] = {
    "iteration": ["--turns=1 --iterations=4", "--height=256 --width=128 --turns=1 --iterations=3"],
    "dispatch": [""],
    "input": ["--images=1000 --turns=3"],
    "startup": ["--turns=1"],
    "kernels": [""],
    "embedding": ["--images=200 --turns=3"],
    "searching": [""],
    "identify": [""],
    "evaluation": ["", "--million"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLES)}")
    names = parser.parse_args().names or list(TABLES)
    if unknown := [name for name in names if name not in TABLES]:
        parser.error(f"there is no benchmark {unknown[0]!r}: choose from {', '.join(TABLES)}")
    failed = []
    for name in names:
        for arguments in TABLES[name]:
            command = [sys.executable, "-m", f"experiments.benchmarks.{name}", *shlex.split(arguments)]
            print(f"\n$ python {shlex.join(command[1:])}", flush=True)
            if subprocess.run(command).returncode:
                failed.append(f"{name} {arguments}".strip())
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
