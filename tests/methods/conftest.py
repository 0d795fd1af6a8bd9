"""A base that most tests of methods stand on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from tests.support.attached import SIZES


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, max_position_embeddings=16, initializer_range=0.2, **SIZES)
    BertModel(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"
