"""Bounds on a pickle, found from its opcodes before anything of it is made.

A pickle of 2 kB can stand for a tree of 2**100 parts: each level holds the one below it twice. Whoever hashes or copies
such a tree never ends.
"""

import io
import pickletools
from typing import IO, Any

MOST_OPCODES = 2**22  # a checkpoint of a large training has some 10**5
MOST_PARTS = 2**22  # of the whole, where each part counts as often as it is reached
OLD_FORMAT = 5  # pickles, one after the other and followed by the arrays, in PyTorch's format without a zip file
FILLS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")  # the object that lies below

Parts = list[Any]  # what an object of a pickle is made of: a list of lists of ... lists


def check_old_format(file: io.BufferedReader) -> None:
    """`check` of the pickles at the start of a file in PyTorch's old format."""
    for _ in range(OLD_FORMAT):
        if file.peek(1):
            check(file)


def check(file: IO[bytes]) -> None:
    """Reads one pickle. Raises ValueError if it has too many parts, or holds itself.

    A damaged one raises nearly anything.
    """
    parts = _parts(file)
    counts: dict[int, int] = {}
    open_parts: set[int] = set()
    left = [(parts, False)]
    while left:
        part, is_counted = left.pop()
        if is_counted:
            counts[id(part)] = 1 + sum(counts[id(inner)] for inner in part)
            open_parts.discard(id(part))
            if counts[id(part)] > MOST_PARTS:
                raise ValueError("it is too large when written out")
        elif id(part) in open_parts:
            raise ValueError("it holds itself")
        elif id(part) not in counts:
            open_parts.add(id(part))
            left += [(part, True), *((inner, False) for inner in part)]


def _parts(file: IO[bytes]) -> Parts:
    """All objects of a pickle, found by running its opcodes on lists of parts in place of the objects."""
    everything: Parts = []
    stack: list[Any] = []  # None is a mark
    memo: dict[int, Parts] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number > MOST_OPCODES:
            raise ValueError("it has too many parts")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if opcode.name == "MEMOIZE" else int(str(argument))] = stack[-1]
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(argument))])
        elif opcode.name == "DUP":
            stack.append(stack[-1])
        elif opcode.name == "MARK":
            stack.append(None)
        else:
            taken = _take(stack, [item.name for item in opcode.stack_before])
            if opcode.name in FILLS:
                taken[0] += taken[1:]
                stack.append(taken[0])
            elif opcode.stack_after:
                stack.append(taken)
                everything.append(taken)
    return everything


def _take(stack: list[Any], kinds: list[str]) -> Parts:
    """Takes from the stack what an opcode takes, with all down to the last mark if the mark is among it."""
    above: Parts = []
    if "mark" in kinds:
        while (top := stack.pop()) is not None:
            above.append(top)
        kinds = kinds[: kinds.index("mark")]
    first = len(stack) - len(kinds)
    below, stack[first:] = stack[first:], []
    return below + above
