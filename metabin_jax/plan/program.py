"""What a compiled GPU program holds and moves, read from its scheduled HLO text (`compiled.as_text()`).

Sizes are bytes. A loop's body counts once, however often it runs; the training step has none on a GPU.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
NAME = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
CALLED = re.compile(r"\b(?:calls|body|condition|to_apply|branch_computations)=\{?(%?[\w.\-]+(?:, %[\w.\-]+)*)")
VIEWS = {"bitcast", "tuple", "get-tuple-element"}
NO_KERNEL = VIEWS | {"parameter", "constant", "while", "conditional", "call", "async-start"}
PRODUCTS = {"custom-call", "dot", "convolution"}
COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"}
TRANSFERS = {"send", "recv", "infeed", "outfeed"}
HOST_MEMORY = "S(5)"  # XLA's name of it in a layout


class Operation(NamedTuple):
    """One line of HLO. calls: computations that it names; op_name: where in the traced function it comes from."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]  # a parameter's is its number
    calls: tuple[str, ...]
    op_name: str
    attributes: str

    @property
    def collective(self) -> str:
        """Which of COLLECTIVES it is, or "": of an asynchronous pair it is the start."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else ""


class Buffer(NamedTuple):
    """An array that one operation wrote; type without layout: "f32[2,3]"."""

    size: int
    type: str
    op_name: str


def arrays(type_text: str) -> list[tuple[int, str]]:
    """Size and type of every array in an HLO type: of "(f32[2]{0}, bf16[3,4]{1,0})", 8 and 24 bytes."""
    found = []
    for dtype, dims in ARRAY.findall(type_text):
        bits = 8 if dtype == "pred" else int(re.sub(r"^[a-z]+(\d+).*", r"\1", dtype))
        for dim in dims.split(","):
            bits *= int(dim or 1)
        found.append((-(-bits // 8), f"{dtype}[{dims}]"))
    return found


def num_bytes(type_text: str) -> int:
    return sum(size for size, _ in arrays(type_text))


@dataclasses.dataclass(frozen=True)
class Program:
    """computations: name -> operations, in the order of the schedule; entry: the name of the one that runs."""

    computations: dict[str, list[Operation]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> "Program":
        """Raises ValueError for a text that has no entry."""
        computations: dict[str, list[Operation]] = {}
        entry, body = "", None
        for line in text.splitlines():
            header = HEADER.match(line)
            if header:
                body = computations.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
            elif body is not None and (operation := _operation(line)):
                body.append(operation)
        if not entry:
            raise ValueError("the HLO text has no ENTRY: it is not that of a compiled program")
        return cls(computations, entry)

    def scheduled(self) -> Iterator[Operation]:
        """All that runs by itself: the entry, and what it calls other than by fusion."""
        waiting = [self.entry]
        for name in waiting:
            for operation in self.computations[name]:
                yield operation
                waiting += [call for call in self.run_by(operation) if call not in waiting]

    def run_by(self, op: Operation) -> list[str]:
        """The computations that an operation runs by themselves: not a fusion's, nor the sum of a reduction."""
        runs = op.opcode in ("while", "conditional", "call") or (op.opcode.endswith("-start") and not op.collective)
        return [call for call in op.calls if runs and call in self.computations]

    def kernels(self) -> list[Operation]:
        """What the device is told to run: fusions, library calls, copies; collectives are not among them."""
        return [
            op for op in self.scheduled()
            if not (op.opcode in NO_KERNEL or op.opcode.endswith("-done") or op.collective)
        ]  # fmt: skip

    def library_convolutions(self) -> list[Operation]:
        return [op for op in self.kernels() if _target(op).startswith("__cudnn$conv")]

    def problems(self) -> list[str]:
        """Float64 anywhere, and what goes to the host or comes from it: a phrase each."""
        found = []
        for op in (op for body in self.computations.values() for op in body):
            what = []
            if re.search(r"\b(f64|c128)\[", op.type):
                what.append("float64")
            by_call = re.search(r"callback|host", _target(op), re.IGNORECASE)
            if by_call or HOST_MEMORY in op.type or re.sub("-(start|done)$", "", op.opcode) in TRANSFERS:
                what.append("a transfer to or from the host")
            found += [f"{each} in {op.name} ({op.op_name or op.opcode})" for each in what]
        return found

    @functools.cached_property
    def types(self) -> dict[str, str]:
        return {op.name: op.type for op in self.scheduled()}

    @functools.cached_property
    def origin(self) -> dict[str, str]:
        """Value -> the operation that wrote it: a view is no writer, and what a tuple holds has one."""
        found: dict[str, str] = {}
        for op in self.scheduled():
            found[op.name] = found[op.operands[0]] if op.opcode in ("bitcast", "get-tuple-element") else op.name
        return found

    def reads(self, kernel: Operation) -> dict[str, int]:
        """Bytes of each operand that a kernel reads: all, or the slices where a fusion takes no more of it."""
        body = self.computations.get(kernel.calls[0], []) if kernel.opcode == "fusion" else []
        inner = {op.operands[0]: op.name for op in body if op.opcode == "parameter"}

        def taken(value: str) -> float:
            """What slices take of a value in the body; infinite where something else takes it too."""
            users = [op for op in body if value in op.operands]
            sizes = [
                num_bytes(op.type) if op.opcode in ("slice", "dynamic-slice")
                else taken(op.name) if op.opcode in ("convert", "bitcast")
                else math.inf
                for op in users
            ]  # fmt: skip
            return sum(sizes) if users else math.inf

        amounts = {}
        for number, operand in enumerate(kernel.operands):
            size = num_bytes(self.types[operand])
            amounts[operand] = int(min(size, taken(inner[str(number)]))) if inner else size
        return amounts

    def moved(self, kernel: Operation) -> int:
        """Bytes that a kernel reads and writes, every operand once."""
        return sum(self.reads(kernel).values()) + num_bytes(kernel.type)

    def norm_traffic(self, layers: Mapping[str, Collection[int]]) -> int:
        """Bytes that norm layers move in forward passes.

        Counted is all that a kernel moves which has an operation of a layer in it, or which reads a map that a layer
        took its moments from (it normalises). Of a convolution or a matrix product, which may normalise what it reads,
        it is only the reading of such a map. Kernels with an operation of a backward pass do not count: for the exact
        meta-gradient, where a kernel may have operations of both, this is a lower bound.

        layers: the modules' paths, such as "backbone/stem_norm", and the bytes of their maps.
        """
        of_a_layer = re.compile(rf"(?:{'|'.join(map(re.escape, sorted(layers)))})\b")
        sizes = {size for maps in layers.values() for size in maps}
        forward = []
        for kernel in self.kernels():
            inner = [op for call in kernel.calls for op in self.computations.get(call, ())]
            names = [kernel.op_name, *(op.op_name for op in inner)]
            if not any("transpose(" in name or "rematted" in name for name in names):
                opcodes = {kernel.opcode, *(op.opcode for op in inner)}
                forward.append((kernel, opcodes, any(map(of_a_layer.search, names))))
        maps = {
            self.origin[operand]
            for kernel, opcodes, own in forward
            if own and "reduce" in opcodes
            for operand, size in self.reads(kernel).items()
            if size in sizes
        }
        total = 0
        for kernel, opcodes, own in forward:
            of_maps = sum(size for operand, size in self.reads(kernel).items() if self.origin[operand] in maps)
            if PRODUCTS & opcodes:
                total += of_maps
            elif own or of_maps:
                total += self.moved(kernel)
        return total

    def live_at_peak(self) -> list[Buffer]:
        """What the entry's operations wrote and still need where that is most, the largest first.

        Outputs do not count: they have places of their own, or those of donated arguments. XLA puts the rest into one
        allocation, the temporaries, whose size is that of the sum but for gaps and what is written in place.
        """
        body, flat = self.computations[self.entry], itertools.chain.from_iterable
        holds: dict[str, list[list[int]]] = {}  # value -> of each of its parts, the buffers by number
        buffers: list[Buffer] = []
        first: list[int] = []
        last: list[int] = []
        for time, op in enumerate(body):
            inputs = [list(flat(holds[operand])) for operand in op.operands] if op.opcode != "parameter" else []
            if op.opcode == "get-tuple-element":
                parts, index = holds[op.operands[0]], int(op.attributes.partition("index=")[2].partition(",")[0])
                holds[op.name] = [parts[index]] if index < len(parts) else inputs
            elif op.opcode == "all-reduce-done":
                holds[op.name] = holds[op.operands[0]]
            elif op.opcode in VIEWS | {"parameter", "constant"}:
                holds[op.name] = inputs
            else:
                new = [Buffer(size, text, op.op_name) for size, text in arrays(op.type)]
                holds[op.name] = [[number] for number in range(len(buffers), len(buffers) + len(new))]
                buffers += new
                first += [time] * len(new)
                last += [time] * len(new)
                for number in flat(inputs):
                    last[number] = time
        outputs = set(flat(holds[body[-1].name]))
        counted = [number for number in range(len(buffers)) if number not in outputs]
        change = [0] * (len(body) + 1)
        for number in counted:
            change[first[number]] += buffers[number].size
            change[last[number] + 1] -= buffers[number].size
        live = list(itertools.accumulate(change))
        peak = live.index(max(live))
        held = [buffers[number] for number in counted if first[number] <= peak <= last[number]]
        return sorted(held, key=lambda buffer: -buffer.size)


def _operation(line: str) -> Operation | None:
    match = NAME.match(line)
    if not match:
        return None
    rest = line[match.end() :]
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    type_text, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = start + _closing(rest[start:])
    opcode, inside, attributes = rest[:start], rest[start + 1 : end - 1], rest[end:]
    operands = (inside,) if opcode == "parameter" else tuple(re.findall(r"%([\w.\-]+)", inside))
    calls = tuple(name.strip(" %") for names in CALLED.findall(attributes) for name in names.split(","))
    origin = re.search(r'op_name="([^"]*)"', attributes)
    return Operation(match[1], type_text, opcode, operands, calls, origin[1] if origin else "", attributes)


def _closing(text: str) -> int:
    """The position after the parenthesis that closes the one `text` starts with."""
    depth = 0
    for at, letter in enumerate(text, start=1):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return at
    raise ValueError(f"a parenthesis is not closed in the HLO text: {text[:80]}")


def _target(op: Operation) -> str:
    match = re.search(r'custom_call_target="([^"]*)"', op.attributes)
    return match[1] if match else ""
