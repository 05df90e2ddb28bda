"""Flags from dataclasses: order of precedence, types, suggestions."""

import argparse
from dataclasses import dataclass

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.flags import add_flags, build, field_types, read_config
from fedbias_plugin.options import option


@dataclass
class Example:
    rate: float = option(0.5, "a rate in %")
    rounds: int = option(5, "rounds")
    use_peft: bool = option(False, "adapters")
    seed: int | None = option(None, "seed")
    names: str = option("a", "names")


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_flags(parser, Example)
    return vars(parser.parse_args(arguments))


def test_the_command_line_wins_over_the_file():
    layers = [("file", {"rounds": 7, "rate": 0.1}), ("command line", parse("--rounds", "9"))]
    assert build(Example, layers) == Example(rate=0.1, rounds=9)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--use_peft"], True), (["--use_peft", "True"], True), (["--use_peft", "false"], False), ([], False)],
)
def test_a_boolean_flag_works_as_in_openfedllm(arguments, expected):
    assert build(Example, [("command line", parse(*arguments))]).use_peft is expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rounds": "many"}, "--rounds 'many' (file) must be a whole number"),
        ({"rounds": 2.5}, "--rounds 2.5 (file) must be a whole number"),
        ({"rounds": True}, "--rounds True (file) must be a whole number"),
        ({"rate": "fast"}, "must be a number"),
        ({"use_peft": "maybe"}, "must be true or false"),
        ({"rate": None}, "must be a number"),
    ],
)
def test_a_value_of_the_wrong_type_names_flag_and_place(values, message):
    with pytest.raises(UserError) as error:
        build(Example, [("file", values)])
    assert message in str(error.value)


def test_yaml_lists_and_scientific_numbers_are_understood():
    assert build(Example, [("file", {"names": ["a", "b"], "rate": "1e-3", "seed": None})]) == Example(
        rate=1e-3, names="a,b"
    )


def test_an_unknown_name_in_a_file_gets_a_suggestion(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("round: 3\n")
    with pytest.raises(UserError, match=r"unknown name 'round'\. Did you mean 'rounds'"):
        read_config(str(path), [Example], {})
    path.write_text("dataset_name: x\n")
    with pytest.raises(UserError, match="OpenFedLLM's --dataset_name is not a flag here; give --clean"):
        read_config(str(path), [Example], {"dataset_name": "give --clean_dataset"})


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "1: 2\n"])
def test_a_file_that_is_no_mapping_of_flags_is_refused(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"run\.yaml"):
        read_config(str(path), [Example], {})
    with pytest.raises(UserError, match="no such file"):
        read_config(str(tmp_path / "none.yaml"), [Example], {})


def test_optional_fields_are_recognised():
    assert field_types(Example)["seed"] == (int, True)
    assert field_types(Example)["rate"] == (float, False)
