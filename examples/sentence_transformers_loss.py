"""A loss for sentence-transformers: in-batch text retrieval, corrected by document frequency.

The usual in-batch loss (MultipleNegativesRankingLoss) penalises documents that are often a
positive, and treats a repeated document in a batch as a wrong answer to its own query. Here the
label of a pair is the number of its document: repetitions are masked, and a document's score is
corrected for its frequency among the positives (correction "refined"; the default, "logq", keeps
repetitions with their expected count).

pip install 'candid-retrieval[examples]' && python examples/sentence_transformers_loss.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import candid

NUM_DOCUMENTS, NUM_WORDS = 200, 400


class DocumentRetrievalLoss(nn.Module):
    """In-batch softmax over documents; the dataset's column ``label`` numbers the documents.

    Args:
        model: encoder of both sides.
        counts: [documents], how often each is the positive in the training data.
        temperature: divisor of the cosine similarity.
    """

    def __init__(
        self, model: SentenceTransformer, counts: Tensor, temperature: float = 0.05
    ) -> None:
        super().__init__()
        self.model = model
        # One right document for a query: with masked repetitions the loss ends near 0.
        self.loss_of = candid.InBatchSoftmaxLoss(
            counts, temperature=temperature, correction="refined"
        )

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the loss of tokenised queries and documents [B] and the document numbers [B]."""
        query, document = (
            normalize(self.model(features)["sentence_embedding"]) for features in sentence_features
        )
        loss: Tensor = self.loss_of(query, document, labels)
        return loss


def corpus() -> tuple[list[str], list[str], Tensor]:
    """Return documents of eight words, and queries of three words of a Zipf-sampled document."""
    generator = torch.Generator().manual_seed(0)
    words = torch.stack(
        [torch.randperm(NUM_WORDS, generator=generator)[:8] for _ in range(NUM_DOCUMENTS)]
    )
    popularity = 1.0 / torch.arange(1, NUM_DOCUMENTS + 1)
    document_ids = torch.multinomial(popularity, 4000, replacement=True, generator=generator)
    picks = torch.rand(len(document_ids), 8, generator=generator).argsort(dim=1)[:, :3]
    queries = words[document_ids].gather(1, picks)

    def text(rows: Tensor) -> list[str]:
        return [" ".join(f"word{word}" for word in row) for row in rows.tolist()]

    return text(words), text(queries), document_ids


def tiny_model(folder: Path) -> SentenceTransformer:
    """Return a transformer of one layer with random weights and a vocabulary of words."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {f"word{i}": i + 2 for i in range(NUM_WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    fast.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    transformer = Transformer(str(folder))
    return SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")


def main() -> None:
    """Train for a few epochs and search for every document with a query."""
    torch.manual_seed(0)
    documents, queries, document_ids = corpus()
    counts = torch.bincount(document_ids, minlength=NUM_DOCUMENTS)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder))
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                num_train_epochs=2,
                per_device_train_batch_size=64,
                learning_rate=5e-3,
                logging_steps=10,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                seed=0,
            ),
            train_dataset=Dataset.from_dict(
                {
                    "query": queries,
                    "document": [documents[i] for i in document_ids],
                    "label": document_ids.tolist(),
                }
            ),
            loss=DocumentRetrievalLoss(model, counts),
        )
        trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # A query for every document, also for rare ones.
    new = [" ".join(text.split()[:3]) for text in documents]
    best = model.similarity(model.encode(new), model.encode(documents)).argmax(dim=1)
    recall = (best == torch.arange(NUM_DOCUMENTS)).float().mean().item()
    print(f"loss {float(logged[0]):.2f} -> {float(logged[-1]):.2f}")
    print(f"recall@1 {recall:.3f}, by chance {1 / NUM_DOCUMENTS:.3f}")


if __name__ == "__main__":
    main()
