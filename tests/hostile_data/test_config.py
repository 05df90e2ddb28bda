"""``--config`` files: flags or a message within a second, whatever YAML can express."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError
from fedbias_plugin.flags import build, read_config
from fedbias_plugin.hosts.builtin.arguments import NOT_HERE, HostArguments
from tests.hostile_data.generators import cases, damaged, is_text, outcome, texts, values

CLASSES = (HostArguments, BiasArguments)
ODD_SCALARS = (
    "2026-13-99",
    "0b_",
    "0x" + "f" * 5_000,
    "9" * 5_000,
    "!!timestamp soon",
    "!!int ten",
    "!!float {}",
    "!!bool maybe",
    "!!binary '*'",
    "!!python/object/apply:os.system [true]",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "&a [1, 2]",
    "[[[[[[[[[[1]]]]]]]]]]",
    "1:59:59",
    ".inf",
    ".nan",
    "~",
    "yes",
    '"\\0"',
    '"\\ud83d"',
    '"\\x1b[2J"',
    "{a: {b: c}}",
    "|\n  a\n  b",
    "? x\n: y",
    "=",
    "<<",
    "%YAML 9.9",
)
NAMES = ("num_rounds", "seed", "learning_rate", "use_peft", "clean_dataset", "biased_shares", "track", "no_such_flag")


def read(path: Path) -> dict[str, Any]:
    """The flags of the file, as ``fedbias run --config`` reads them."""
    return read_config(str(path), CLASSES, NOT_HERE)


def arguments(path: Path) -> list[Any]:
    """The arguments that it makes of them."""
    return [build(cls, [(f"--config {path}", read(path))]) for cls in CLASSES]


@cases(100)
@given(data=st.data())
def test_a_malformed_config_gives_arguments_or_a_message(folder, data):
    lines = data.draw(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(ODD_SCALARS) | st.just("3"), max_size=4))
    odd = "".join(f"{name}: {value}\n" for name, value in lines.items()).encode()
    found = data.draw(st.dictionaries(st.sampled_from(NAMES) | texts, values, max_size=4))
    plain = yaml.safe_dump(found, allow_unicode=data.draw(st.booleans())).encode("utf-8", "surrogatepass")
    path = folder / "config.yaml"
    path.write_bytes(data.draw(damaged(data.draw(st.sampled_from((odd, plain))))))
    if outcome(lambda: read(path), path) is None:
        return
    made = outcome(lambda: arguments(path))  # a value out of range is named by its flag
    for part in made or []:
        assert all(is_text(value) for value in vars(part).values() if isinstance(value, str))


def test_an_anchor_bomb_is_refused_at_its_first_alias(folder):
    path = folder / "bomb.yaml"
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    path.write_text("\n".join(["a0: &a0 [lol]", *levels, "track: *a29"]))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"bomb.yaml, line 2: \*a0 is an alias; write the value itself"):
        read(path)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: " + b"[" * 50_000, "line 1: nested too deeply"),
        (b"- " * 40_000, "line 1: nested too deeply"),
        (b"seed: 1\n" * 100_000, "has more than 100,000 bytes: is it a file of flags"),
        (b"track: " + b"x" * 1_000_000, "has more than 100,000 bytes"),
        (b"seed: 1\nnum_rounds: 2026-13-99\n", "cannot be read: month must be in 1..12"),
        (b"seed: 1\nx: !!python/object/apply:os.system ['true']\n", "line 2 cannot be read: could not determine a con"),
        (b"seed: 0x" + b"f" * 5_000, r"--seed a int that is too long to show .*must be a whole number|--seed must be"),
        (b'clean_dataset: "a\\0.csv"', r"--clean_dataset .*holds U\+0000, a control character"),
        (b'clean_dataset: "\\ud83d.csv"', r"--clean_dataset .*holds U\+D83D, half a character"),
        (b"seed: \xff", "can't decode byte 0xff"),
    ],
)
def test_a_config_that_yaml_chokes_on_is_named_with_what_is_wrong(folder, content, message):
    path = folder / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        arguments(path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["no\0such.yaml", "x" * 5_000, "folder/../../nowhere.yaml", "."])
def test_a_config_that_cannot_be_opened_is_a_message(name):
    assert outcome(lambda: read_config(name, CLASSES, NOT_HERE)) is None
