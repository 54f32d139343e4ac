"""The tiny models of families that recipes name, with long positions and tokenizers of their kinds."""

from pathlib import Path

from families import FAMILIES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "### Instruction:\n\n### Response:\n Please choose the correct answer to the question:",
    "the correct answer is true false solution1 solution2 answer1 answer2 ending1 option1",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
POSITIONS = 640


def _tokenizer(folder: Path, kind: str) -> int:
    """`bytes`: of bytes, no start token of its own. `llama`: the same with one. `pieces`: a blank before the
    text, as SentencePiece puts it, and a start token. The number of tokens."""
    core = Tokenizer(models.BPE(unk_token="<unk>" if kind == "pieces" else None))
    if kind == "pieces":
        core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        alphabet = [chr(i) for i in range(32, 127)] + ["\n", "▁"]
    else:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=SPECIAL, initial_alphabet=alphabet)
    core.train_from_iterator(TEXT, trainer)
    if kind == "roberta":
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    elif kind != "bytes":
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)
    return core.get_vocab_size()


def save_family(folder: Path, family: str) -> Path:
    """A model folder of `family`: mistral, gemma2, llama, gpt2 or roberta."""
    kinds = {"mistral": "pieces", "gemma2": "pieces", "llama": "llama", "gpt2": "bytes", "roberta": "roberta"}
    positions = "n_positions" if family == "gpt2" else "max_position_embeddings"
    size = {"vocab_size": _tokenizer(folder, kinds[family]), positions: POSITIONS}
    FAMILIES[family].save_model(folder, pad_token_id=0, bos_token_id=1, eos_token_id=2, **size)
    return folder
