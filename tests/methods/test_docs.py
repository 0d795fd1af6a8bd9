"""The examples of docs/training.md, run one after another as they stand there, on a tiny base."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

import petlpack

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def _batch() -> dict[str, Any]:
    ids = torch.randint(5, 40, (4, 6))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}


def _train(model: Any, optimizer: Any) -> None:
    for _ in range(3):
        model(**_batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=40, max_position_embeddings=16, **sizes)).save_pretrained("models/bert-base")
    names: dict[str, Any] = {
        "batches": [_batch() for _ in range(3)],
        "few_batches": [_batch() for _ in range(2)],
        "mixed_batches": [("sst2", _batch()), ("rte", _batch())] * 2,
        "rows": [{key: values[0] for key, values in _batch().items()} for _ in range(16)],
        "few_rows": [{key: values[0] for key, values in _batch().items()} for _ in range(5)],
        "train": _train,
    }
    assert len(BLOCKS) >= 5
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)
    assert sorted(petlpack.open("glue.pack")) == ["glue.rte", "glue.sst2", "sst2"]
    assert sorted(path.name for path in Path("runs").iterdir()) == [
        "glue",
        "glue-propetl",
        "sst2",
        "sst2-adamix",
        "sst2-diff",
    ]
