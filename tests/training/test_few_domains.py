"""Folders that cannot be trained on as they are: the commands that the messages print lead to a training."""

import re

import pytest
from tiny_run import draw_folder

from metabin_jax.cli.config_files import load_config
from metabin_jax.runtime.errors import UserError
from metabin_jax.training.build import build, resolve


def advised(fields):
    """The messages from a command with these fields on, taking the advice of each, and what is built at last."""
    said = []
    for _ in range(4):
        try:
            return said, build(resolve(load_config("folder", fields)))
        except UserError as error:
            said.append(str(error))
            advice = re.findall(r"--config\.([\w.]+)=([^\s,;]*[^\s,;.])", said[-1])
            assert advice, said[-1]
            fields = fields | dict(advice)
    raise AssertionError(f"the advice leads nowhere: {said}")


@pytest.mark.parametrize(
    ("place", "fields", "messages"),
    [
        ("north", {}, ["holds the images of one domain"]),
        ("", {"data.train_domains": "north"}, ["there is one source domain (north)"]),
        ("two", {"data.eval_domains": "south"}, ["there is one source domain (north)"]),
        ("", {"data.eval_domains": "south"}, []),
    ],
)
def test_each_message_leads_to_a_training(tmp_path, place, fields, messages):
    draw_folder(tmp_path / "all", domains=("north", "south", "west"), ids=6, cameras=3)
    draw_folder(tmp_path / "two", domains=("north", "south"), ids=6, cameras=3)
    path = tmp_path / "two" if place == "two" else tmp_path / "all" / place
    said, run = advised({"data.path": str(path), "data.cache_dir": str(tmp_path / "cache")} | fields)
    assert len(said) == len(messages) and all(text in own for text, own in zip(messages, said, strict=True))
    assert len(run.data.domains) >= 2
