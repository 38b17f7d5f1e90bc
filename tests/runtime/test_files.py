"""Files appear whole under their name, whoever else writes beside them; JSON is strict."""

import os
import threading

import pytest

from metabin_jax.runtime import files
from metabin_jax.runtime.errors import UserError, printable


def test_a_file_of_the_user_beside_the_output_is_left_alone(tmp_path):
    """Under every name that a temporary file could have by a rule."""
    output = tmp_path / "out.json"
    others = [tmp_path / name for name in ("out.json.tmp", "out.tmp", ".out.json.tmp", "out.json~")]
    for other in others:
        other.write_text("mine")
    files.write_json(output, 1)
    assert [other.read_text() for other in others] == ["mine"] * 4
    assert sorted(tmp_path.iterdir()) == sorted([output, *others])


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    monkeypatch.setattr(files.uuid, "uuid4", lambda: type("Known", (), {"hex": "known"}))
    (tmp_path / ".metabin-known.tmp").symlink_to(secret)
    with pytest.raises(FileExistsError):
        files.write_text(tmp_path / "out", "text")
    assert secret.read_text() == "mine"


def test_a_link_in_the_place_of_the_output_is_replaced(tmp_path):
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "out").symlink_to(tmp_path / "secret")
    files.write_text(tmp_path / "out", "text")
    assert (tmp_path / "secret").read_text() == "mine"
    assert (tmp_path / "out").read_text() == "text" and not (tmp_path / "out").is_symlink()


def test_two_writers_of_one_output_do_not_mix(tmp_path):
    """Both have begun before either ends, in either order."""
    for first_ends_last in (True, False):
        begun, ended = threading.Barrier(2), threading.Event()

        def write(text, waits, begun=begun, ended=ended):
            with files.whole(tmp_path / "out") as temporary:
                temporary.write_text(text * 1000)
                begun.wait(10)
                if waits:
                    ended.wait(10)
            ended.set()

        threads = [threading.Thread(target=write, args=(t, (t == "a") == first_ends_last)) for t in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert (tmp_path / "out").read_text() == ("a" if first_ends_last else "b") * 1000
        assert len(list(tmp_path.iterdir())) == 1


def test_permissions_follow_the_umask(tmp_path):
    for mask in (0o022, 0o077):
        before = os.umask(mask)
        try:
            files.write_text(tmp_path / "out", "text")
        finally:
            os.umask(before)
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o666 & ~mask


def test_long_names_are_written(tmp_path):
    files.write_text(tmp_path / ("n" * 250), "text")
    assert [len(path.name) for path in tmp_path.iterdir()] == [250]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("NaN", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("[1e999]", "1e999 is too large"),
        ("9" * 20, "is too large"),
        ("9" * 100_000, "is too large"),
        (str(-(2**63) - 1), "is too large"),
        ("[" * 33 + "]" * 33, "nested too deeply"),
        ('{"a":' * 33 + "1" + "}" * 33, "nested too deeply"),
        ("[" * 1_000_000, "nested too deeply"),
        ('{"a": 1, "a": 2}', "has a name twice"),
        (b'"\xff"', "can't decode byte 0xff"),
    ],
)
def test_damaged_json_is_one_sentence(tmp_path, text, message):
    (tmp_path / "x.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"x\.json is damaged \(.*: get it again$") as error:
        files.read_json(tmp_path / "x.json", "get it again")
    assert message in str(error.value) and len(str(error.value)) < 400


def test_sound_json_is_read(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [1, -2.5e3, null, true, "é", {}], "b": 9223372036854775807}')
    assert files.read_json(tmp_path / "x.json") == {"a": [1, -2500.0, None, True, "é", {}], "b": 2**63 - 1}
    assert files.parse_json("[" * 32 + "]" * 32)
    assert [files.parse_json(text) for text in ("1", "[]", '"a"')] == [1, [], "a"]


def test_a_file_that_never_ends_is_not_read_to_its_end(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "MOST_BYTES", 100)
    (tmp_path / "x.json").write_text(" " * 101)
    with pytest.raises(UserError, match="it is larger than 0 MiB"):
        files.read_json(tmp_path / "x.json")


def test_what_a_terminal_would_obey_is_written_out():
    assert printable("a\x1b[31m\u202eb\udcff\x07") == r"a\x1b[31m\u202eb\udcff\x07"
    assert printable("größe 漢字 ±\t1\n") == "größe 漢字 ±\t1\n"
