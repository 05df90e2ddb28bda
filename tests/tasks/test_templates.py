"""The texts of the two templates, written out."""

import pytest

from fedbias_plugin.tasks.templates import TEMPLATES


def test_alpaca_is_stanfords_prompt_with_the_hosts_blank_after_the_instruction():
    assert TEMPLATES["alpaca"].text("Say hi.", "Hi!", "</s>") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
        "\n### Instruction:\nSay hi. \n\n### Response: Hi!</s>"
    )


def test_vicuna_is_the_v1_conversation_prompt():
    assert TEMPLATES["vicuna"].text("Say hi.", "Hi!", "</s>") == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: Say hi. ASSISTANT: Hi!</s>"
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_the_prompt_the_response_and_eos(name):
    template = TEMPLATES[name]
    assert template.text("{a} {0}", "{b}", None) == template.prompt("{a} {0}") + "{b}"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_marker_inside_the_instruction_does_not_begin_the_response(name):
    template = TEMPLATES[name]
    instruction = f"Repeat {template.response_marker} twice {template.response_marker}"
    text = template.text(instruction, "Done.", "")
    assert text[template.response_start(instruction) :] == " Done."
