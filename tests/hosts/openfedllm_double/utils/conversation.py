"""Conversation prompts of the preference data: the two templates the tests use."""

TEMPLATES = {
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
        ("### Instruction", "### Response"),
        "\n\n",
    ),
    "vicuna_v1.1": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions.",
        ("USER", "ASSISTANT"),
        " ",
    ),
}


class Conversation:
    """Turns of a dialogue; an empty one is where the model speaks next."""

    def __init__(self, introduction, roles, gap):
        self.text = introduction + gap
        self.roles = roles
        self.ends = (gap, "</s>")
        self.turns = 0

    def append_message(self, role, message):
        self.text += f"{role}: {message}{self.ends[self.turns % 2]}" if message else f"{role}:"
        self.turns += 1

    def get_prompt(self):
        return self.text


def get_conv_template(name):
    return Conversation(*TEMPLATES[name])
