"""Trains the quickstart's tiny BERT encoder on unlabelled triage notes and saves it into the package.

With the default arguments on one CPU thread this makes the model that the package carries. The training sees
no department: it fills in masked words and, from the pooled vector, guesses which words the note has.
"""

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.models.bert.modeling_bert import BertOnlyMLMHead

from fedsb.cli.quickstart import MODEL_DIR
from fedsb.cli.quickstart.notes import pretraining_text

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
MAX_LENGTH = 64


def main() -> None:
    """Trains and saves the tokenizer and the model."""
    args = _arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    texts = pretraining_text(args.num_texts, args.seed)
    tokenizer = _tokenizer(texts, args.vocab_size)
    model = Pretrainer(_config(tokenizer, args))
    rows = [torch.tensor(row) for row in tokenizer(texts, truncation=True)["input_ids"]]
    _train(model, rows, args)
    _save(model.bert, tokenizer, args.out)


def _arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; sums differ with their number")
    parser.add_argument("--num-texts", type=int, default=60_000)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--intermediate-size", type=int, default=256)
    parser.add_argument("--initializer-range", type=float, default=0.06)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--bag-weight", type=float, default=1.0, help="weight of the pooled vector's loss")
    return parser.parse_args()


def _tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A lower-casing byte-pair tokenizer with BERT's special tokens around a text or a pair of texts."""
    bpe = Tokenizer(models.BPE(unk_token="[UNK]"))
    bpe.normalizer = normalizers.BertNormalizer(lowercase=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    bpe.decoder = decoders.Metaspace()
    alphabet = [chr(code) for code in range(33, 127)]
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    bpe.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, model_max_length=MAX_LENGTH, model_input_names=inputs, **names
    )


def _config(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> BertConfig:
    """A small BERT's configuration."""
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        intermediate_size=args.intermediate_size,
        max_position_embeddings=MAX_LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=args.initializer_range,
        pad_token_id=PAD,
    )


class Pretrainer(nn.Module):
    """The encoder under two heads that are thrown away: one for masked words, one for the note's words.

    The second head is what trains the pooler, which masked-word prediction leaves at its random start. It
    makes the pooled vector say what a note mentions, so that a classifier has something to start from.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.bert = BertModel(config)
        self.masked_head = BertOnlyMLMHead(config)
        self.masked_head.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight
        self.bag_head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, ids: Tensor, seen: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """The two losses of a batch: of the masked words, and of the note's words."""
        out = self.bert(input_ids=seen, attention_mask=(ids != PAD).long())
        words = self.masked_head(out.last_hidden_state[masked])
        return cross_entropy(words, ids[masked]), _bag_loss(self.bag_head(out.pooler_output), ids)


def _bag_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy between the head's distribution over words and the note's own, each word once."""
    bag = torch.zeros_like(logits).scatter_(1, ids, 1.0)
    bag[:, : len(SPECIAL)] = 0.0
    return -(bag / bag.sum(1, keepdim=True).clamp(min=1) * log_softmax(logits, dim=1)).sum(1).mean()


def _train(model: Pretrainer, rows: list[Tensor], args: argparse.Namespace) -> None:
    """Trains by AdamW with a warm-up and a cosine decay, and prints the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    scale = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _decay(step, args.steps))
    batches = _batches(rows, args.batch_size, args.seed)
    started = time.monotonic()
    for step in range(1, args.steps + 1):
        masked_loss, bag_loss = model(*next(batches))
        optimizer.zero_grad()
        (masked_loss + args.bag_weight * bag_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scale.step()
        if step % 100 == 0:
            losses = f"masked words {masked_loss.item():.3f}, note's words {bag_loss.item():.3f}"
            print(f"step {step}: {losses} ({time.monotonic() - started:.0f} s)", flush=True)


def _decay(step: int, steps: int, warmup: int = 100) -> float:
    """The learning rate's factor."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _batches(rows: list[Tensor], size: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches of ids, ids as the model sees them, and which are masked."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in _alike(rows, size, generator):
            ids = nn.utils.rnn.pad_sequence([rows[i] for i in chosen], batch_first=True, padding_value=PAD)
            masked = _masked(ids, generator)
            yield ids, ids.masked_fill(masked, MASK), masked


def _alike(rows: list[Tensor], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Batches of row numbers, of rows about equally long, so that little is padded."""
    for some in torch.randperm(len(rows), generator=generator).split(64 * size):
        order = sorted(some.tolist(), key=lambda row: len(rows[row]))
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[number]


def _masked(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Which tokens to hide: one in eight, and a run of up to eight in each text.

    A run hides a complaint whole, so that it has to be guessed from elsewhere in the note.
    """
    at = torch.arange(ids.shape[1])
    lengths = (ids != PAD).sum(1, keepdim=True)
    start = torch.rand(lengths.shape, generator=generator) * lengths
    run = torch.randint(1, 9, lengths.shape, generator=generator)
    chosen = (torch.rand(ids.shape, generator=generator) < 0.125) | ((at >= start) & (at < start + run))
    return chosen & (ids >= len(SPECIAL))


def _save(bert: BertModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the folder in whole: beside its place first, then renamed over the old one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        fresh, old = Path(scratch, "fresh"), Path(scratch, "old")
        bert.half().save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"saved {size / 1e6:.2f} MB into {folder}")


if __name__ == "__main__":
    main()
