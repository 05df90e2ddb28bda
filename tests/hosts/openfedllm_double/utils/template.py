"""The public prompts of Alpaca and Vicuna, with places for instruction, response and EOS."""

TEMPLATE_DICT = {
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{} \n\n### Response: {}{}",
        "\n### Response:",
    ),
    "vicuna": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: {} ASSISTANT: {}{}",
        " ASSISTANT:",
    ),
}


def get_formatting_prompts_func(template_name, eos_token):
    prompt, marker = TEMPLATE_DICT[template_name]

    def texts_of(batch):
        rows = zip(batch["instruction"], batch["response"], strict=True)
        return [prompt.format(instruction, response, eos_token) for instruction, response in rows]

    return texts_of, marker
