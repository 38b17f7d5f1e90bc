"""How the shipped splits were drawn: `python -m experiments.draw_splits` writes the same files again.

No random generator is used, whose stream another version might change: what is drawn follows from SHA-256 of a text.
"""

import hashlib
import json

from metabin_jax.data.sets.catalogue import SINGLE_SHOT
from metabin_jax.data.sets.splits import DRAWN
from metabin_jax.runtime.files import write_text

SPLITS = 10
IMAGE_NUMBERS = 2520  # divisible by 1 to 10, so that a number below it, mod n, is uniform


def draw(target: str) -> str:
    """The text of drawn_splits/{target}.json: persons to test, as positions in the sorted list of persons.

    How many images i-LIDS has of a person is not known here: two numbers per person choose two of any number.
    """
    size = SINGLE_SHOT[target]
    splits = []
    for number in range(SPLITS):
        by_digest = sorted(range(size.persons), key=lambda position: _number(target, number, position, "person"))
        test = sorted(by_digest[: size.test])
        split: dict[str, list] = {"test": test}
        if target == "ilids":
            split["images_of"] = [
                [_number(target, number, position, image) % IMAGE_NUMBERS for image in ("query", "gallery")]
                for position in test
            ]
        splits.append(json.dumps(split))
    return f'{{"target": "{target}", "persons": {size.persons}, "splits": [\n' + ",\n".join(splits) + "\n]}\n"


def _number(*what: object) -> int:
    text = " ".join(map(str, ("metabin_jax", *what)))
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest(), "big")


if __name__ == "__main__":
    for target in SINGLE_SHOT:
        write_text(DRAWN / f"{target}.json", draw(target))
