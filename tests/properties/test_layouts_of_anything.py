"""Trees of pictures: labels are those that the names were made of, and every file is in a row or left out by name."""

import tempfile
from pathlib import Path

from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption

from metabin_jax.data import layouts
from metabin_jax.data.layouts import Row
from metabin_jax.runtime.errors import UserError

NAMES = st.text("abcXYZäß猫 0123456789-_.", min_size=1, max_size=6).filter(
    lambda name: not name.startswith(".") and not name.endswith(".") and name.strip() == name and name != "-1"
)
DOMAINS = NAMES.filter(lambda name: not name.lower().startswith(("cam", "id", "person", "pid")))
IMAGES = st.lists(
    st.tuples(DOMAINS, NAMES, st.integers(0, 40), st.integers(0, 99)), min_size=2, max_size=8, unique=True
)


def planted(root, paths):
    for path in paths:
        try:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        except OSError as error:  # a name that the file system does not take, or a file where a folder should be
            raise UnsatisfiedAssumption from error


def named(kind, domain, name, camera, number):
    """A path, and what it shows."""
    identity = str(sum(map(ord, name)))
    return {
        "market": (f"{domain}/{identity:0>6}_c{camera}_{number}.jpg", Row(identity, str(camera), domain)),
        "identities": (f"{domain}/{name}/img{number}.png", Row(name, "", domain)),
        "cameras": (f"{domain}/cam{camera}/Person {name}/{number}.webp", Row(name, str(camera), domain)),
        "template": (f"{domain}/{camera}@{name}/x{number}.tif", Row(name, str(camera), domain)),
    }[kind]


@given(st.sampled_from(["market", "identities", "cameras", "template"]), IMAGES, st.lists(NAMES, max_size=2))
def test_labels_are_what_the_names_were_made_of(kind, images, notes):
    if kind == "cameras":
        assume(all(name.replace("_", "").isalnum() for _, name, *_ in images))
    expected = dict(named(kind, *image) for image in images)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        planted(root, [*expected, *(f"{note}.txt" for note in notes)])
        assume(len({str(path).lower() for path in expected}) == len(expected))
        try:
            found = layouts.index(root, "{domain}/{camid}@{pid}/{}.tif" if kind == "template" else "")
        except UserError as error:
            assert kind == "identities" and len({path.rpartition("/")[0] for path in expected}) == 1, error
            return
        assert found.rows == expected
        assert sum(map(len, found.left_out.values())) == len({*notes})


ANYTHING = st.text("ab1_c-.C TFid@{}猫", min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))


@given(
    st.lists(st.lists(ANYTHING, min_size=1, max_size=3), min_size=1, max_size=6),
    st.sampled_from([".jpg", ".PNG", ".txt", ""]),
    st.sampled_from(["", "{pid}", "{pid}/{}", "{domain}/{pid}_{}.jpg", "{", "{pid}{camid}"]),
)
def test_every_file_is_in_a_row_or_left_out(parts, suffix, template):
    paths = {"/".join(part) + suffix for part in parts}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        planted(root, paths)
        try:
            found = layouts.index(root, template)
        except UserError as error:
            assert "\n" not in str(error)
            return
        left = {path for reason in found.left_out.values() for path in reason}
        hidden = {path for path in paths if any(part.startswith(".") for part in path.split("/")[:-1])}
        assert {*found.rows} | left == paths - hidden and not {*found.rows} & left
        assert all(row.pid and "/" not in row.pid for row in found.rows.values())
