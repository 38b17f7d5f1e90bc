"""What the cards of one host send each other in a step, read from its compiled program, and the time that may take.

Times are in seconds, bandwidths in bytes a second and one way. Nothing overlaps: XLA waits for each collective unless
told otherwise, and a norm layer has to wait for its moments anyway.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from metabin_jax.plan.program import Program, num_bytes


class Link(NamedTuple):
    """What joins the cards. A collective takes `latency`, and a `hop` for each step around the ring of the cards."""

    bandwidth: float
    latency: float
    hop: float


# Bandwidths: XLA's gpu_collective_performance_model.cc. It counts 20 of the 25 GB/s that NVIDIA names for a link of
# NVLink, of which an A100 has 12 and an H100 18. PCIe is for cards that meet in the host's memory, as GeForce cards do.
# Latencies: NCCL's src/graph/tuning.cc (baseLat, hwLat), for a ring and its protocol for small arrays, LL.
LINKS = {
    "NVLink 3": Link(240e9, 6.6e-6, 0.6e-6),
    "NVLink 4": Link(360e9, 6.6e-6, 0.6e-6),
    "PCIe": Link(12e9, 6.6e-6, 1e-6),
}
LAUNCH = 1e-6  # of a kernel: kKernelLaunchOverhead in XLA's gpu_performance_model_base.h
ROUNDS = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1}  # around the ring, N - 1 steps each
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Collective(NamedTuple):
    """One that runs `times` times a step, each time for `size` bytes: those of the whole array, before it is scattered
    or after it is gathered."""

    kind: str
    size: int
    times: int

    def sent(self, devices: int) -> float:
        """Bytes that each device sends in a step: all for a collective permutation, else its parts around the ring."""
        share = ROUNDS[self.kind] * (devices - 1) / devices if self.kind in ROUNDS else 1
        return self.times * self.size * share


def wait(kind: str, devices: int, link: Link) -> float:
    """Seconds that a collective takes however little it sends."""
    return link.latency + link.hop * (ROUNDS[kind] * (devices - 1) if kind in ROUNDS else 1)


def find_collectives(program: Program, devices: int) -> list[Collective]:
    """All that run in a step, each among all devices; the two of an asynchronous pair are one.

    Those of a loop run as often as XLA knows it to run, or once where it does not know; of branches all count.
    """
    found, waiting = [], [(program.entry, 1)]
    for name, times in waiting:
        for op in program.computations[name]:
            if op.collective:
                size = sum(num_bytes(program.types[operand]) for operand in op.operands)
                found.append(Collective(op.collective, size * (devices if op.collective == "all-gather" else 1), times))
            trips = TRIPS.search(op.attributes) if op.opcode == "while" else None
            waiting += [(call, times * int(trips[1] if trips else 1)) for call in program.run_by(op)]
    return found


class Work(NamedTuple):
    """Of one device in a step: the bytes that its kernels move, their number, and the collectives it takes part in."""

    moved: int
    kernels: int
    collectives: Sequence[Collective] = ()


def explain(alone: Work, shared: Work, devices: int, bandwidth: float, link_name: str) -> Iterator[str]:
    """The predicted speed of a step on `devices` cards against that on one, line by line, with its arithmetic.

    alone: the step on one card; shared: on each of them; bandwidth: of a card's memory. The last line is about a batch
    that grows with the devices. There each has to move what `alone` does, and runs the kernels of `shared`.
    """
    link, counts, sizes = LINKS[link_name], Counter[str](), Counter[str]()
    for each in shared.collectives:
        counts[each.kind] += each.times
        sizes[each.kind] += each.times * each.size
    kinds = sorted(counts)
    sent = sum(each.sent(devices) for each in shared.collectives)
    waits = [(counts[kind], wait(kind, devices, link)) for kind in kinds]
    sending, waiting = sent / link.bandwidth, sum(count * seconds for count, seconds in waits)
    one, each_of_them = _computing(alone, bandwidth), _computing(shared, bandwidth)
    same = sum(each_of_them) + sending + waiting
    grown = one[0] + each_of_them[1] + sending + waiting

    yield "in all " + ", ".join(f"{counts[kind]:,} {kind} of {sizes[kind] / 1e6:.2f} MB" for kind in kinds)
    for name, work, seconds in (("1 device", alone, one), (f"each of {devices}", shared, each_of_them)):
        yield (
            f"{name}: {work.moved / 1e9:.2f} GB / {bandwidth / 1e9:,.0f} GB/s + {work.kernels:,} kernels x "
            f"{LAUNCH * 1e6:.0f} us = {_ms(*seconds)}"
        )
    yield (
        f"{link_name}: {sent / 1e6:.2f} MB sent / {link.bandwidth / 1e9:.0f} GB/s + "
        + " + ".join(f"{count:,} x {seconds * 1e6:.1f} us" for count, seconds in waits)
        + f" = {_ms(sending, waiting)}"
    )
    yield (
        f"the same batch: {_ms(sum(each_of_them), sending + waiting)}, which is {sum(one) / same:.2f} times as fast as "
        f"1 device: efficiency {sum(one) / same / devices:.0%}"
    )
    yield (
        f"a batch {devices} times as large: {_ms(one[0], each_of_them[1], sending + waiting)}: efficiency "
        f"{sum(one) / grown:.0%}"
    )


def _computing(work: Work, bandwidth: float) -> tuple[float, float]:
    return work.moved / bandwidth, work.kernels * LAUNCH


def _ms(*seconds: float) -> str:
    return f"{' + '.join(f'{each * 1e3:.2f}' for each in seconds)} = {sum(seconds) * 1e3:.2f} ms"
