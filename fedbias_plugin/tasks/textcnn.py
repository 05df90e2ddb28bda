"""A convolutional net over words (Kim 2014, arXiv:1408.5882), as a model of Transformers that saves and loads."""

from __future__ import annotations

import re
import zlib
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

WORD = re.compile(r"\w+|[^\w\s]")
VOCABULARY = 20_000


def word_ids(text: str, vocabulary: int = VOCABULARY) -> list[int]:
    """Words and signs in lower case, each hashed (CRC-32) to 1 ... ``vocabulary`` - 1; 0 is padding.

    A hash needs no list of words: nobody has to collect one from the clients' texts. Two words in about 20,000 share a
    number. A text without any word is one unknown word.

    >>> len(word_ids("What is a bridge made of?")), word_ids("Bridge") == word_ids("bridge")
    (7, True)
    """
    words = WORD.findall(text.lower()) or [""]
    return [1 + zlib.crc32(word.encode()) % (vocabulary - 1) for word in words]


class TextCnnConfig(PretrainedConfig):
    """Shape of a :class:`TextCnn`: **our choice**, 2.7 million weights with eight labels."""

    model_type = "fedbias_textcnn"

    def __init__(
        self,
        vocab_size: int = VOCABULARY,
        embedding_size: int = 128,
        widths: tuple[int, ...] = (3, 4, 5),
        filters: int = 100,
        dropout: float = 0.5,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.vocab_size, self.embedding_size, self.filters, self.dropout = vocab_size, embedding_size, filters, dropout
        self.widths = list(widths)
        self.use_cache = False


class TextCnn(PreTrainedModel):
    """Embeddings, convolutions of several widths, the maximum over the text of each, dropout, a linear layer.

    Windows begin at every word and may reach beyond the end, where there is nothing; padding is not looked at, so that
    a row's logits do not depend on the rows beside it.
    """

    config_class = TextCnnConfig
    base_model_prefix = ""
    has_pretrained_weights = False

    def __init__(self, config: TextCnnConfig) -> None:
        super().__init__(config)
        size, filters = config.embedding_size, config.filters
        self.embeddings = nn.Embedding(config.vocab_size, size, padding_idx=0)
        self.convolutions = nn.ModuleList(nn.Conv1d(size, filters, width) for width in config.widths)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(filters * len(config.widths), config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own draws stand."""

    def get_input_embeddings(self) -> nn.Module:
        """The words'."""
        return self.embeddings

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Nothing here is worth computing twice."""

    def gradient_checkpointing_disable(self) -> None:
        """As above."""

    def disable_input_require_grads(self) -> None:
        """There is no hook for adapters here."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Logits of shape (rows, labels); with ``labels``, shape (rows,), their mean cross-entropy too."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        vectors = (self.embeddings(input_ids) * mask.unsqueeze(-1)).transpose(1, 2)
        found = []
        for width, convolution in zip(self.config.widths, self.convolutions, strict=True):
            padded = nn.functional.pad(vectors, (0, width - 1))
            windows = torch.relu(convolution(padded)) * mask.unsqueeze(1)
            found.append(windows.amax(dim=2))
        logits = self.classifier(self.dropout(torch.cat(found, dim=1)))
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
