"""Shared fixtures: a small byte-level tokenizer, a tiny model folder, and a tiny model whose thoughts do something."""

from __future__ import annotations

import os

# One thread a process, subprocesses included, set before torch is imported: the suite runs in parallel processes, and
# threads of several processes that wait for each other take a tiny model from milliseconds to seconds.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import io
import signal
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from browsing import browser, visit  # noqa: F401 (fixtures of every test)
from quietstar import QuietStar
from quietstar.cli import main as cli

# Started in the background, the suite may have been told to ignore these; programs that tests start must not be.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def own_record(tmp_path_factory, monkeypatch) -> Path:
    """No test writes into the record of whoever runs it."""
    path = tmp_path_factory.mktemp("record") / "record.db"
    monkeypatch.setenv("QUIETSTAR_DB", str(path))
    return path


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few merges: any text has tokens, and most characters beyond ASCII span several."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(["the quick brown fox thinks before it speaks and then it says the thing"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>",
        unk_token="<|endoftext|>", chat_template=TEMPLATE,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_folder(tokenizer, tmp_path_factory) -> str:
    """A Llama of a few thousand weights with the tokenizer, as any local model folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
        pad_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def trained(model: QuietStar, seed: int = 0, size: float = 0.3) -> QuietStar:
    """Give the head and markers random values, so that thoughts move predictions."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.head.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * size)
        for weight in model.markers.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.003)
    return model


@pytest.fixture
def tiny(tiny_folder) -> QuietStar:
    return trained(QuietStar.from_pretrained(tiny_folder, dtype="float32"))


@pytest.fixture(scope="session")
def folder(tiny_folder, tmp_path_factory) -> str:
    """The tiny model as a folder in our own layout, with thoughts that do something."""
    saved = tmp_path_factory.mktemp("saved")
    trained(QuietStar.from_pretrained(tiny_folder, dtype="float32")).save_pretrained(saved)
    return str(saved)


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def command(*arguments: str, stdin: str | None = None):
        monkeypatch.setattr(sys, "argv", ["quietstar", *arguments])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err

    return command
