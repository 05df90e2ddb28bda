"""What a user would score with instead: three models of lm-evaluation-harness (``pip install lm-eval``).

``hf`` is its HFLM on the live model. ``openvino`` (``pip install optimum-intel openvino``; a CPU) needs the LoRA merged
and the whole model exported for every client; ``vllm`` (``pip install vllm``; a GPU) the adapter saved. Each peer does
that in :meth:`Peer.client`.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from limits import Work

from fedbias_plugin.scoring.items import ScoreRequest


class Peer:
    """A scorer of one client after the other.

    Args:
        model: a ``PeftModel``, whose adapter is the client's.
        tokenizer: of the model.
        threads: of a CPU.
        precision: that an engine of its own computes in: ``float32``, ``bfloat16``, or ``default``, what it chooses.

    Attributes:
        work: of the last call, padding included.
    """

    batches: Sequence[int | str] = (8, 16, 32)
    device = ""
    """The only one that it runs on; empty for any."""
    needs: Sequence[str] = ("lm_eval",)
    packages = "lm-eval"

    def __init__(self, model: Any, tokenizer: Any, *, threads: int = 1, precision: str = "float32") -> None:
        self.model, self.tokenizer, self.threads, self.precision = model, tokenizer, threads, precision
        self.work = Work()
        self.lm: Any = None
        self._left = contextlib.ExitStack()
        self.folder = Path(self._left.enter_context(tempfile.TemporaryDirectory()))

    @classmethod
    def obstacle(cls, device: str) -> str:
        """Why it cannot run here; empty if it can."""
        missing = [name for name in cls.needs if not _is_there(name)]
        if missing:
            return f"{', '.join(missing)} is not installed: pip install {cls.packages}"
        if cls.device and device != cls.device:
            return f"it runs on {cls.device} alone: --device {cls.device}"
        if device == "cuda" and not torch.cuda.is_available():
            return "there is no GPU"
        return ""

    def client(self) -> None:
        """Make ready to score the model with the adapter that it has now."""
        raise NotImplementedError

    def at(self, batch: int | str) -> Peer:
        """This peer with another batch size."""
        self.lm.batch_size_per_gpu = batch
        return self

    def __call__(self, texts: Sequence[ScoreRequest]) -> list[float]:
        """The log-likelihood of every text."""
        from lm_eval.api.instance import Instance

        self.work = Work()
        instances = [Instance("loglikelihood", {}, (t.context, t.text), i) for i, t in enumerate(texts)]
        return [score for score, _ in self.lm.loglikelihood(instances, disable_tqdm=True)]

    def close(self) -> None:
        """Delete its files."""
        self._left.close()

    def _count(self, tokens: int) -> None:
        self.work = Work(self.work.tokens + tokens, self.work.head_rows + tokens)


class HuggingFace(Peer):
    """``HFLM`` on the live model, the adapter beside the weights."""

    def client(self) -> None:
        from lm_eval.models.huggingface import HFLM

        self._take(HFLM(pretrained=self.model, tokenizer=self.tokenizer, batch_size=8, add_bos_token=False))

    def _take(self, lm: Any) -> None:
        """Use ``lm``, and count what it gives its model."""
        call = lm._model_call

        def counted(inputs: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
            self._count(inputs.numel())
            return call(inputs, *rest, **named)

        lm._model_call = counted
        self.lm = lm


class OpenVino(HuggingFace):
    """Its ``OptimumLM``: the merged model, saved, exported and compiled for every client."""

    device = "cpu"
    needs = ("lm_eval", "optimum.intel", "openvino")
    packages = "lm-eval optimum-intel openvino"

    def client(self) -> None:
        from lm_eval.models.optimum_lm import OptimumLM

        copy.deepcopy(self.model).merge_and_unload().save_pretrained(self.folder / "merged")
        self.tokenizer.save_pretrained(self.folder / "merged")
        config: dict[str, Any] = {"INFERENCE_NUM_THREADS": self.threads, "NUM_STREAMS": 1}
        hints = {"float32": "f32", "bfloat16": "bf16"}
        if self.precision in hints:
            config["INFERENCE_PRECISION_HINT"] = hints[self.precision]
        path = self.folder / "openvino.json"
        path.write_text(json.dumps(config))
        self._take(
            OptimumLM(
                pretrained=str(self.folder / "merged"),
                tokenizer=self.tokenizer,
                batch_size=8,
                add_bos_token=False,
                ov_config=str(path),
                export=True,
                load_in_8bit=False,
            )
        )


class Vllm(Peer):
    """Its ``VLLM``, an engine that stays, with the adapter as a new LoRA request for every client.

    All tokens count: for requests that ask for log-probabilities of the prompt, vLLM leaves its prefix cache aside.
    """

    batches = ("auto",)
    device = "cuda"
    needs = ("lm_eval", "vllm")
    packages = "lm-eval vllm"

    def __init__(self, model: Any, tokenizer: Any, **settings: Any) -> None:
        super().__init__(model, tokenizer, **settings)
        self.clients = 0

    def client(self) -> None:
        from vllm.lora.request import LoRARequest

        self.clients += 1
        adapter = self.folder / f"adapter_{self.clients}"
        self.model.save_pretrained(adapter)
        if self.lm is None:
            self.lm = self._engine(adapter)
        # a new id: the engine keeps what it has read under an old one
        self.lm.lora_request = LoRARequest(f"client_{self.clients}", self.clients, str(adapter))

    def _engine(self, adapter: Path) -> Any:
        """Made once, with half of the GPU's memory: our model is there too."""
        from lm_eval.models.vllm_causallms import VLLM

        copy.deepcopy(self.model).unload().save_pretrained(self.folder / "base")
        self.tokenizer.save_pretrained(self.folder / "base")
        lm = VLLM(
            pretrained=str(self.folder / "base"),
            dtype="auto" if self.precision == "default" else self.precision,
            batch_size="auto",
            add_bos_token=False,
            max_model_len=self.model.config.max_position_embeddings,
            gpu_memory_utilization=0.5,
            lora_local_path=str(adapter),
        )
        generate = lm._model_generate

        def counted(requests: list[list[int]], **named: Any) -> Any:
            self._count(sum(map(len, requests)))
            return generate(requests=requests, **named)

        lm._model_generate = counted
        return lm

    def at(self, batch: int | str) -> Peer:
        """As it is: the engine makes its own batches."""
        return self


PEERS: dict[str, type[Peer]] = {"hf": HuggingFace, "openvino": OpenVino, "vllm": Vllm}


def _is_there(name: str) -> bool:
    """Whether a module, its packages among them, is installed; nothing but the packages is imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
