"""The five tasks of the experiment: the same split for every row, as token ids."""

from __future__ import annotations

import functools
import random
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from train import base_dir, load_task

TASKS = ("section", "role", "use", "interface", "devel")
BATCH = 16
MAX_TOKENS = 32
DEV_SHARE = 8
"""One in so many train rows is for choosing learning rates, and is trained on only when they are chosen."""
DEV_ROWS = 400
TEST_ROWS = 1000
"""Test rows of a task at most, the same for every row of the table."""

Example = tuple[list[int], int]
"""Token ids and the index of the label."""


@dataclass(frozen=True)
class Data:
    """One task. `train` holds `dev`, whose rows are left out of `search`."""

    name: str
    labels: int
    train: list[Example]
    search: list[Example]
    dev: list[Example]
    test: list[Example]

    def few(self, examples: int, seed: int) -> list[Example]:
        """Return so many train rows that are not in `dev`, drawn by the seed; the same for every row of the table."""
        return random.Random(f"{self.name} {seed}").sample(self.search, examples)


@functools.cache
def load(name: str) -> Data:
    """Read a task; test rows whose text is a train row are left out (see train.py)."""
    from transformers import AutoTokenizer

    train, test, labels = load_task(name)
    tokenizer = AutoTokenizer.from_pretrained(base_dir())

    def encoded(rows: list[tuple[str, int]]) -> list[Example]:
        ids = tokenizer([text for text, _ in rows], truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return list(zip(ids, (label for _, label in rows), strict=True))

    held_out = [zlib.crc32(text.encode()) % DEV_SHARE == 0 for text, _ in train]
    examples = encoded(train)
    return Data(
        name,
        len(labels),
        examples,
        [example for example, out in zip(examples, held_out, strict=True) if not out],
        [example for example, out in zip(examples, held_out, strict=True) if out][:DEV_ROWS],
        encoded(random.Random(name).sample(test, min(TEST_ROWS, len(test)))),
    )


def batches(examples: Sequence[Example], rng: random.Random) -> Iterator[list[Example]]:
    """Draw batches for ever, of rows of about one length: the whole data in random order, again and again."""
    while True:
        order = rng.sample(examples, len(examples))
        for start in range(0, len(order), 16 * BATCH):
            pool = sorted(order[start : start + 16 * BATCH], key=lambda example: len(example[0]))
            cut = [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
            yield from rng.sample(cut, len(cut))


def collate(batch: Sequence[Example], device: str) -> dict[str, Any]:
    """Return a batch's tensors: ids padded with BERT's pad token 0, the mask, the labels."""
    import torch

    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch], device=device)
    labels = torch.tensor([label for _, label in batch], device=device)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}
