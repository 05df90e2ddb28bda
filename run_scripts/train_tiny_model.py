#!/usr/bin/env python3
"""Train the bundled tiny Llama: text in, checkpoint out, seeded.

The model learns the balanced small world (``mini_world``) and, with ``--text FILE...``, general English from plain
text, or from json rows with instruction and response (Dolly, Alpaca). Never give it an evaluation set.

    python run_scripts/train_tiny_model.py --text $FEDBIAS_DATA/dolly_fed10/local_training_*.json

Without ``--text`` it needs nothing but this repository; the command of a model of six layers is in docs/small-world.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mini_world.instructions import Row, pretraining_rows
from mini_world.sentences import corpus, last_texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "fedbias_plugin" / "assets" / "tiny_llama"
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")  # ids 0 to 3
BOS, EOS, PAD = 1, 2, 3
Sample = list[int]
Batch = list[Sample]
Schedule = Callable[[int, int, float], float]
CONTEXT = 1024
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction} \n\n### Response: {response}"
)


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule of the training run."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    feed_forward: int
    epochs: int
    last_epochs: int
    general_tokens: int
    batch_tokens: int
    learning_rate: float
    last_learning_rate: float
    seed: int


def alpaca_text(row: Row) -> str:
    """An instruction row in the host's Alpaca template (its spaces and line ends included)."""
    instruction = f"{row['instruction']} {row['input']}" if row.get("input") else row["instruction"]
    return ALPACA.format(instruction=instruction, response=row["output"])


def read_general_text(path: Path, longest: int = 600) -> list[str]:
    """Texts of at most about ``longest`` characters: json rows in the Alpaca template, or lines of a plain text."""
    if path.suffix == ".json":
        rows = json.loads(path.read_text(encoding="utf-8"))
        texts = []
        for row in rows:
            output = row.get("response") or row.get("output") or ""
            text = alpaca_text({"instruction": row["instruction"], "input": row.get("input", ""), "output": output})
            texts.append(text[:longest])
            texts += _pieces(row.get("context", ""), longest)
        return [text for text in texts if text.strip()]
    return _pieces(path.read_text(encoding="utf-8"), longest)


def _pieces(text: str, longest: int) -> list[str]:
    """Paragraphs of ``text``, long ones cut at a space; headings and scraps are left out."""
    pieces = []
    for paragraph in text.split("\n"):
        words = paragraph.split()
        piece = ""
        for word in words:
            if len(piece) + len(word) >= longest:
                pieces.append(piece)
                piece = ""
            piece = f"{piece} {word}" if piece else word
        if len(piece) > 40:
            pieces.append(piece)
    return pieces


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE that puts ``<s>`` in front, as Llama's tokenizer does."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the two tokenizer files in the form that both old (0.13) and new ``tokenizers`` read: merges as strings."""
    data = json.loads(tokenizer.to_str())
    merges = data["model"]["merges"]
    data["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def build_model(recipe: Recipe, vocabulary: int) -> LlamaForCausalLM:
    """A seeded, untrained Llama in float32 with tied embeddings."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config)


def batches(units: Sequence[Sequence[Sample]], batch_tokens: int, rng: random.Random) -> list[Batch]:
    """Units of similar length together, each whole, at most ``batch_tokens`` with padding, in random order."""
    out: list[Batch] = [[]]
    for longest, _, unit in sorted((max(map(len, unit)), rng.random(), unit) for unit in units):
        if longest * (len(out[-1]) + len(unit)) > batch_tokens and out[-1]:
            out.append([])
        out[-1] += unit
    rng.shuffle(out)
    return out


def epochs(
    world: list[Sample], general: list[Sample], last: Sequence[Sequence[Sample]], recipe: Recipe
) -> list[list[Batch]]:
    """The batches of each epoch: the whole world once, and the next ``general_tokens`` of general English.

    After them ``last_epochs`` more with the units of ``last`` in the place of the world.
    """
    rng = random.Random(recipe.seed)
    general = list(general)
    rng.shuffle(general)
    position = 0
    plan = []
    for units in [*[[[sample] for sample in world]] * recipe.epochs, *[last] * recipe.last_epochs]:
        chosen, tokens = [], 0
        while general and tokens < recipe.general_tokens:
            chosen.append([general[position % len(general)]])
            tokens += len(chosen[-1][0])
            position += 1
        plan.append(batches([*units, *chosen], recipe.batch_tokens, rng))
    return plan


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 4% of the steps, then a cosine to a twentieth of the peak."""
    warm = max(1, steps // 25)
    if step < warm:
        return peak * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def last_learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 4% of the steps, then linearly to zero."""
    warm = max(1, steps // 25)
    return peak * min((step + 1) / warm, (steps - step) / (steps - warm))


def optimizer_for(model: LlamaForCausalLM, peak: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean next-token loss of one batch, in nats; padding does not count."""
    longest = max(len(sample) for sample in batch)
    ids = torch.full((len(batch), longest), PAD)
    for row, sample in enumerate(batch):
        ids[row, : len(sample)] = torch.tensor(sample)
    logits = model(input_ids=ids).logits[:, :-1]
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == PAD, -100)
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def train(model: LlamaForCausalLM, plan: list[list[Batch]], peak: float, rate: Schedule) -> float:
    """Train in place with a new optimizer; returns the mean loss of the last 100 steps in nats a token."""
    steps = sum(len(epoch) for epoch in plan)
    optimizer = optimizer_for(model, peak)
    losses: list[float] = []
    start = time.time()
    model.train()
    for number, epoch in enumerate(plan):
        for batch in epoch:
            for group in optimizer.param_groups:
                group["lr"] = rate(len(losses), steps, peak)
            loss = batch_loss(model, batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        recent = sum(losses[-100:]) / len(losses[-100:])
        print(
            f"epoch {number + 1}: step {len(losses)}/{steps} loss {recent:.3f} {time.time() - start:.0f} s", flush=True
        )
    return sum(losses[-100:]) / len(losses[-100:])


def parse_recipe() -> tuple[argparse.Namespace, Recipe]:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the bundled tiny Llama.")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="general English: .txt/.raw, or .json rows")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder of the checkpoint")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number may change the last bits")
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args()
    return args, Recipe(**{name: getattr(args, name) for name in DEFAULTS})


DEFAULTS: dict[str, int | float] = {
    "vocabulary": 2048,
    "width": 128,
    "layers": 4,
    "heads": 4,
    "feed_forward": 384,
    "epochs": 6,
    "last_epochs": 1,
    "general_tokens": 80_000,
    "batch_tokens": 1024,
    "learning_rate": 4e-3,
    "last_learning_rate": 1e-3,
    "seed": 3,
}


def main() -> None:
    """Train tokenizer and model and write the folder."""
    args, recipe = parse_recipe()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    world_texts = corpus() + [alpaca_text(row) for row in pretraining_rows()]
    general_texts = [text for path in args.text for text in read_general_text(path)]
    sample = random.Random(recipe.seed).sample(general_texts, min(len(general_texts), 8000))
    tokenizer = train_tokenizer(world_texts + sample, recipe.vocabulary)
    world = [[*encoding.ids, EOS] for encoding in tokenizer.encode_batch(world_texts)]
    general = [[*encoding.ids[:255], EOS] for encoding in tokenizer.encode_batch(general_texts)]
    model = build_model(recipe, tokenizer.get_vocab_size())
    counts = f"{sum(map(len, world)):,} world, {sum(map(len, general)):,} general"
    print(f"{model.num_parameters():,} parameters; tokens: {counts}", flush=True)
    last = [[[*encoding.ids, EOS] for encoding in tokenizer.encode_batch(list(texts))] for texts in last_texts()]
    plan = epochs(world, general, last, recipe)
    train(model, plan[: recipe.epochs], recipe.learning_rate, learning_rate)
    loss = train(model, plan[recipe.epochs :], recipe.last_learning_rate, last_learning_rate)
    args.output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.output)
    (args.output / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, args.output)
    print(f"final loss {loss:.4f} nats a token; wrote {args.output}")


if __name__ == "__main__":
    main()
