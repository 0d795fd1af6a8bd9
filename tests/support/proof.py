"""What a row of the table of libraries is, how its model is trained, and how its run goes into a pack and back."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import tokenizers
import torch
import transformers

import petlpack

STEPS = 3
TEXTS = ["w1 w2 w3", "w4 w30"]
ODD = [
    "",
    " \t\u00a0\n ",
    "na\u00efve caf\u00e9 na\u0131ve",
    "e\u0301\u0301 \u202eright to left\u202c \u200b",
    "\U0001f469\u200d\U0001f4bb \ud55c\uad6d\uc5b4 \u65e5\u672c \u0627\u0644\u0639",
    "<s>w1</s> [CLS] [MASK] <|user|>",
    "w1w2  w3,w4" + "!" * 9,
    "\x00\x07 w1 \ufffd",
]
"""Texts that tokenizers split differently where anything of theirs is lost."""


class Row(Protocol):
    """A kind of model that a library saves."""

    @property
    def needs(self) -> str:
        """The library, as it is imported."""

    def write(self, place: Path) -> None:
        """Write `base`, and `run`, which was trained from it."""

    def ask(self, directory: Path, base: Path) -> bytes:
        """Return to the bit what the model computes that the library loads from a directory."""


@dataclass(frozen=True)
class Model:
    """A row whose library is in this environment."""

    needs: str
    pretrain: Callable[[Path], None]
    """Writes the base."""
    load: Callable[[Path, Path], Any]
    """Loads a directory, of an adapter on the base."""
    forward: Callable[[Any], torch.Tensor]
    """What the model computes, with gradients."""
    begin: Callable[[Path], Any] | None = None
    """The model to be trained, by default the base."""
    save: Callable[[Any, Path], None] = lambda model, run: model.save_pretrained(str(run))
    say: Callable[[Any], Any] | None = None
    """What people ask the model for, by default what it computes: an array or a tensor."""
    parts: Callable[[Any], list[torch.nn.Module]] = lambda model: [model]
    """What of the model is trained."""
    train: Callable[[Any], None] | None = None
    """The library's own training, by default some steps of AdamW."""

    def write(self, place: Path) -> None:
        """Write the base and the trained run."""
        torch.manual_seed(0)
        self.pretrain(place / "base")
        model = self.load(place / "base", place / "base") if self.begin is None else self.begin(place / "base")
        before = self._said(model)
        (self.train or self._train)(model)
        assert self._said(model) != before
        self.save(model, place / "run")
        _copy_tokenizer(place / "base", place / "run")

    def ask(self, directory: Path, base: Path) -> bytes:
        """Return to the bit what the loaded model says."""
        return self._said(self.load(directory, base))

    def _said(self, model: Any) -> bytes:
        for part in self.parts(model):
            part.eval()
        torch.manual_seed(4)
        with torch.no_grad():
            said = torch.as_tensor((self.say or self.forward)(model))
        octets: bytes = said.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return octets

    def _train(self, model: Any) -> None:
        weights = [weight for part in self.parts(model) for weight in part.train().parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=0.01)
        for _ in range(STEPS):
            optimizer.zero_grad()
            (self.forward(model).float() - 1).square().mean().backward()
            optimizer.step()


def _copy_tokenizer(base: Path, run: Path) -> None:
    """Save the base's tokenizer beside the run, as people do, where the library did not."""
    if (base / "tokenizer.json").is_file() and not (run / "tokenizer.json").is_file():
        transformers.AutoTokenizer.from_pretrained(base).save_pretrained(run)


def write_tokenizer(directory: Path, kind: str) -> None:
    """Write a tokenizer of at most 300 words, `wordpiece`, `bpe` or `unigram`, trained on a few texts."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "<image>"]
    models, trainers, pre = tokenizers.models, tokenizers.trainers, tokenizers.pre_tokenizers
    common: dict[str, Any] = {"special_tokens": special, "show_progress": False, "vocab_size": 300}
    bytes_of = pre.ByteLevel.alphabet()
    ways = {
        "wordpiece": (models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(**common), pre.BertPreTokenizer()),
        "bpe": (models.BPE(), trainers.BpeTrainer(initial_alphabet=bytes_of, **common), pre.ByteLevel()),
        "unigram": (models.Unigram(), trainers.UnigramTrainer(unk_token="[UNK]", **common), pre.Metaspace()),
    }
    model, trainer, pre_tokenizer = ways[kind]
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.normalizer = tokenizers.normalizers.NFKC() if kind == "unigram" else None
    tokenizer.train_from_iterator([*(f"w{i} w{i * 7}" for i in range(60)), *ODD], trainer)
    whole = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>", mask_token="[MASK]"
    )
    whole.chat_template = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
    whole.save_pretrained(directory)


def tokens(directory: Path) -> list[Any]:
    """Return what every tokenizer of a directory makes of odd texts."""
    found = sorted(path.parent for path in directory.rglob("tokenizer_config.json"))
    read = [transformers.AutoTokenizer.from_pretrained(folder) for folder in found]
    ids = [tokenizer(text)["input_ids"] for tokenizer in read for text in ODD]
    chat = [{"role": "user", "content": ODD[2]}]
    return [*ids, *(one.apply_chat_template(chat, tokenize=False) for one in read if one.chat_template)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let the libraries warn of what they like: pytest makes errors of warnings, which is meant for ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def files_of(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def carry(run: Path, base: Path | None, place: Path) -> Path:
    """Encode a run, verify it, and return the directory that all its tasks are decoded into.

    Every file comes back to the byte: but for pickles, which torch writes anew. Nothing is left out or warned of.
    """
    before = files_of(run)
    tasks = petlpack.encode(run, place / "pack", base, jobs=1)
    out = place / "out"
    pack = petlpack.open(place / "pack")
    for task in tasks:
        assert (task.exact, task.warnings, task.left_out) == (True, (), ())
        back = pack[task.name].decode(place / "tasks" / task.name, base, jobs=1).path
        shutil.copytree(back, out, dirs_exist_ok=True)
        for checked in petlpack.verify(place / "pack", base, against=run, task=task.name):
            assert (checked.error, checked.depth) == (None, "compared")
    after = files_of(out)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name] and not name.endswith(".bin")] == []
    return out


def skip_without(library: str) -> None:
    """Skip a test whose library is not here, unless PETLPACK_LIBRARIES is `required`, as in `make check`."""
    if os.environ.get("PETLPACK_LIBRARIES") == "required":
        __import__(library)
    else:
        pytest.importorskip(library, reason=f"no {library} here: `make check` has it in an environment of its own")
