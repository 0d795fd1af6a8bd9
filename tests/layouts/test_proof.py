"""The table of libraries: trained, saved, packed, decoded and loaded by each, a run computes the same bits.

`make check` runs it a second time, in an environment that has all of these libraries.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from tests.support.adapters_row import AdapterHub
from tests.support.proof import TEXTS, Model, Row, carry, quiet, skip_without, tokens, write_tokenizer

IDS = torch.tensor([[9, 10, 11, 12], [13, 14, 15, 16]])
SIZES = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = {**SIZES, "intermediate_size": 24, "max_position_embeddings": 64}
LLAMA = {
    **{"vocab_size": 300, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "pad_token_id": 0},
    **{"num_attention_heads": 4, "num_key_value_heads": 1, "max_position_embeddings": 64, "use_cache": False},
}
"""Widths of 12, 48, 72 and 300, which no tensor of an adapter has by chance."""
GPT2 = {"vocab_size": 300, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
BART = {"vocab_size": 300, "d_model": 16, "max_position_embeddings": 64} | {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 24))
}
T5 = {"vocab_size": 300, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
CLIP = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}


# Transformers


def logits(model: Any, **more: Any) -> torch.Tensor:
    out = model(**{"input_ids": IDS, **more})
    return out.logits if "logits" in out else out[0]


def load(kind: str, directory: Path, base: Path) -> Any:
    model, info = getattr(transformers, kind).from_pretrained(directory, output_loading_info=True, dtype="auto")
    assert not info["missing_keys"], info
    return model


def write_model(kind: str, config: Any, tokenizer: str, directory: Path, dtype: torch.dtype = torch.float32) -> None:
    getattr(transformers, kind)(config).to(dtype).save_pretrained(directory)
    write_tokenizer(directory, tokenizer)


def model(kind: str, config: Any, tokenizer: str, **more: Any) -> Model:
    forward = partial(logits, **more.pop("inputs", {}))
    pretrain = partial(write_model, kind, config, tokenizer, **more.pop("written", {}))
    return Model("transformers", pretrain, partial(load, kind), forward, **more)


def with_head(directory: Path) -> Any:
    return transformers.BertForSequenceClassification.from_pretrained(directory, num_labels=3)


def in_shards(model: Any, run: Path) -> None:
    model.save_pretrained(run, max_shard_size="8KB")
    assert len(list(run.glob("*.safetensors"))) > 2


ENCODER = Model(
    "transformers",
    partial(write_model, "BertModel", transformers.BertConfig(**BERT), "wordpiece"),
    partial(load, "BertForSequenceClassification"),
    logits,
    with_head,
)
VLM = transformers.LlavaConfig(
    vision_config=transformers.CLIPVisionConfig(**CLIP, image_size=8, patch_size=4),
    text_config=transformers.LlamaConfig(**LLAMA),
    image_token_index=7,
    image_seq_length=4,
    vision_feature_layer=-1,
)
SEEN = {
    "input_ids": torch.tensor([[7, 7, 7, 7, 9, 10]]),
    "pixel_values": torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8),
}
MOE = transformers.MixtralConfig(**LLAMA, num_local_experts=4)
QWEN_MOE = transformers.Qwen3MoeConfig(**LLAMA, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
ANSWER = {"decoder_input_ids": IDS + 1}
TRANSFORMERS: dict[str, Row] = {
    "encoder": ENCODER,
    "decoder": model("LlamaForCausalLM", transformers.LlamaConfig(**LLAMA), "bpe"),
    "decoder in bfloat16": model(
        "LlamaForCausalLM", transformers.LlamaConfig(**LLAMA), "bpe", written={"dtype": torch.bfloat16}
    ),
    "encoder and decoder": model("BartForConditionalGeneration", transformers.BartConfig(**BART), "bpe", inputs=ANSWER),
    "t5": model("T5ForConditionalGeneration", transformers.T5Config(**T5), "unigram", inputs=ANSWER),
    "vision and language": model("LlavaForConditionalGeneration", VLM, "bpe", inputs=SEEN),
    "mixture of experts": model("MixtralForCausalLM", MOE, "bpe"),
    "mixture of narrow experts": model("Qwen3MoeForCausalLM", QWEN_MOE, "bpe"),
    "sharded": model("LlamaForCausalLM", transformers.LlamaConfig(**LLAMA), "bpe", save=in_shards),
    "tied": model("GPT2LMHeadModel", transformers.GPT2Config(**GPT2), "bpe"),
    "tied, masked": model("BertForMaskedLM", transformers.BertConfig(**BERT), "wordpiece"),
}


# PEFT

Q_V = {"target_modules": ["q_proj", "v_proj"]}
VIRTUAL = {"num_virtual_tokens": 3}
PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind.lower(): (kind, {**Q_V, "r": 2}) for kind in ("LORA", "LOHA", "LOKR", "HRA", "HIRA", "LILY")},
    **{kind.lower(): (kind, {**Q_V, "r": 2}) for kind in ("VERA", "PVERA", "RANDLORA", "MISS", "DELORA", "PSOFT")},
    **{kind.lower(): (kind, {**Q_V, "r": 2}) for kind in ("GLORA", "PEANUT", "DEFT", "SHIRA")},
    **{kind.lower(): (kind, Q_V) for kind in ("OSF", "FROD", "BEFT", "SUPERTUNING")},
    **{kind.lower(): (kind, VIRTUAL) for kind in ("PROMPT_TUNING", "PREFIX_TUNING", "CARTRIDGE")},
    "dora": ("LORA", {**Q_V, "r": 2, "use_dora": True}),
    "rslora": ("LORA", {**Q_V, "r": 2, "use_rslora": True, "bias": "lora_only", "rank_pattern": {"q_proj": 3}}),
    "pissa": ("LORA", {**Q_V, "r": 2, "init_lora_weights": "pissa"}),
    "embedding lora": ("LORA", {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}),
    "lora and whole modules": ("LORA", {**Q_V, "r": 2, "modules_to_save": ["lm_head"]}),
    "lora and tokens": ("LORA", {**Q_V, "r": 2, "trainable_token_indices": [9, 10]}),
    "adalora": ("ADALORA", {**Q_V, "init_r": 3, "target_r": 2, "total_step": 10}),
    "adamss": ("ADAMSS", {**Q_V, "r": 4, "num_subspaces": 2, "subspace_rank": 1}),
    "adaption_prompt": ("ADAPTION_PROMPT", {"adapter_len": 3, "adapter_layers": 1}),
    "boft": ("BOFT", {**Q_V, "boft_block_size": 4}),
    "c3a": ("C3A", {**Q_V, "block_size": 6}),
    "cpt": ("CPT", {"cpt_token_ids": [3, 4], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]}),
    "fourierft": ("FOURIERFT", {**Q_V, "n_frequency": 6}),
    "gralora": ("GRALORA", {**Q_V, "r": 4, "gralora_k": 2}),
    "ia3": ("IA3", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "ln_tuning": ("LN_TUNING", {"target_modules": ["input_layernorm"]}),
    "multitask_prompt_tuning": ("MULTITASK_PROMPT_TUNING", {**VIRTUAL, "num_tasks": 2}),
    "oft": ("OFT", {**Q_V, "r": 0, "oft_block_size": 8}),
    "p_tuning": ("P_TUNING", {**VIRTUAL, "encoder_hidden_size": 8}),
    "poly": ("POLY", {**Q_V, "r": 2, "n_tasks": 2, "n_skills": 2, "n_splits": 2}),
    "road": ("ROAD", {**Q_V, "group_size": 4}),
    "shadow": ("SHADOW", {"r": 2}),
    "tinylora": ("TINYLORA", {**Q_V, "r": 2, "u": 4}),
    "trainable_tokens": ("TRAINABLE_TOKENS", {"token_indices": [9, 10], "target_modules": ["embed_tokens"]}),
    "unilora": ("UNILORA", {**Q_V, "r": 2, "theta_d_length": 16}),
    "vblora": ("VBLORA", {**Q_V, "r": 2, "num_vectors": 4, "vector_length": 2, "topk": 2}),
    "waveft": ("WAVEFT", {**Q_V, "n_frequency": 6}),
}
TASKS = {"task_ids": torch.tensor([0, 1])}
WITH_TASKS = ("poly", "multitask_prompt_tuning")
write_llama = partial(write_model, "LlamaForCausalLM", transformers.LlamaConfig(**LLAMA), "bpe")


def adapt(kind: str, settings: dict[str, Any], base: Path) -> Any:
    config = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind](task_type="CAUSAL_LM", **settings)
    return peft.get_peft_model(load("LlamaForCausalLM", base, base), config)


def load_adapter(directory: Path, base: Path) -> Any:
    return peft.PeftModel.from_pretrained(load("LlamaForCausalLM", base, base), directory)


def mixed(base: Path) -> Any:
    """X-LoRA, over two LoRAs that were trained before."""
    paths = {name: str(base.parent / name) for name in "01"}
    for path in paths.values():
        adapt("LORA", {**Q_V, "r": 2, "init_lora_weights": False}, base).save_pretrained(path)
    return adapt("XLORA", {"hidden_size": 48, "xlora_size": 4, "adapters": paths}, base)


def adapter(begin: Callable[[Path], Any], **inputs: Any) -> Model:
    return Model("peft", write_llama, load_adapter, partial(logits, **inputs), begin)


def needing(library: str, row: Model) -> Model:
    return replace(row, needs=library)


ADAPTERS: dict[str, Row] = {
    name: adapter(partial(adapt, kind, settings), **(TASKS if name in WITH_TASKS else {}))
    for name, (kind, settings) in PEFT.items()
}


# Sentence Transformers, SetFit


def bert_with_words(directory: Path) -> None:
    write_model("BertModel", transformers.BertConfig(**BERT), "wordpiece", directory)


def embed(model: Any) -> torch.Tensor:
    with_task = [{"task": task} if "Router" in type(model[0]).__name__ else {} for task in ("query", "document")]
    said = [model(model.preprocess(TEXTS, **task), **task)["sentence_embedding"] for task in with_task]
    return torch.cat([one.to_dense() if one.is_sparse else one for one in said])


def encode(model: Any) -> Any:
    said = [encode(TEXTS, convert_to_tensor=True) for encode in (model.encode_query, model.encode_document)]
    return torch.cat([one.to_dense() if one.is_sparse else one for one in said]).numpy()


def static(modules: Any, words: Path) -> Any:
    return modules.StaticEmbedding(transformers.AutoTokenizer.from_pretrained(words), embedding_dim=16)


def of_words(modules: Any, words: Path) -> Any:
    return modules.Transformer(str(words))


def pooled(modules: Any, words: Path) -> Any:
    return modules.Pooling(16)


def dense(modules: Any, words: Path) -> Any:
    return modules.Dense(16, 8)


def router(modules: Any, words: Path) -> Any:
    documents = [of_words(modules, words), pooled(modules, words)]
    return modules.Router.for_query_document(query_modules=[static(modules, words)], document_modules=documents)


def pretrain_sentences(parts: tuple[Callable[[Any, Path], Any], ...], directory: Path) -> None:
    import sentence_transformers as library
    from sentence_transformers.sentence_transformer import modules

    words = directory.parent / "words"
    bert_with_words(words)
    library.SentenceTransformer(modules=[part(modules, words) for part in parts], device="cpu").save(str(directory))


def load_sentences(kind: str, directory: Path, base: Path) -> Any:
    import sentence_transformers

    return getattr(sentence_transformers, kind)(str(directory), device="cpu")


def sentences(*parts: Callable[[Any, Path], Any]) -> Model:
    load_it = partial(load_sentences, "SentenceTransformer")
    return Model("sentence_transformers", partial(pretrain_sentences, parts), load_it, embed, say=encode)


def score(model: Any) -> torch.Tensor:
    return model(model.preprocess([(TEXTS[0], TEXTS[1]), (TEXTS[1], TEXTS[1])]))["scores"]


CROSS_ENCODER = Model(
    "sentence_transformers",
    partial(write_model, "BertForSequenceClassification", transformers.BertConfig(**BERT, num_labels=1), "wordpiece"),
    partial(load_sentences, "CrossEncoder"),
    score,
    say=lambda model: model.predict([TEXTS, TEXTS[::-1]]),
)
SPLADE = Model(
    "sentence_transformers",
    partial(write_model, "BertForMaskedLM", transformers.BertConfig(**BERT), "wordpiece"),
    partial(load_sentences, "SparseEncoder"),
    embed,
    say=encode,
)


def begin_setfit(base: Path) -> Any:
    import setfit
    from sklearn.linear_model import LogisticRegression

    body = load_sentences("SentenceTransformer", base, base)
    return setfit.SetFitModel(model_body=body, model_head=LogisticRegression().fit(body.encode(TEXTS), [0, 1]))


def load_setfit(directory: Path, base: Path) -> Any:
    import setfit

    return setfit.SetFitModel.from_pretrained(str(directory), device="cpu")


def train_setfit(model: Any) -> None:
    """Train the body and then the head, as SetFit does."""
    import datasets
    import setfit

    with tempfile.TemporaryDirectory() as place:
        data = datasets.Dataset.from_dict({"text": TEXTS * 2, "label": [0, 1] * 2})
        arguments = setfit.TrainingArguments(
            place, batch_size=2, max_steps=3, report_to="none", show_progress_bar=False
        )
        setfit.Trainer(model, arguments, data).train()


SETFIT = Model(
    "setfit",
    partial(pretrain_sentences, (of_words, pooled)),
    load_setfit,
    lambda model: embed(model.model_body),
    begin_setfit,
    say=lambda model: model.predict_proba(TEXTS),
    parts=lambda model: [model.model_body],
    train=train_setfit,
)


SENTENCES: dict[str, Row] = {
    "dense": sentences(of_words, pooled, dense),
    "static": sentences(static),
    "router": sentences(router),
    "cross encoder": CROSS_ENCODER,
    "sparse encoder": SPLADE,
}


# Diffusers

PIXELS = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8)
UNET = {
    "sample_size": 8,
    "block_out_channels": (8,),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
}


def unet() -> Any:
    import diffusers

    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    return diffusers.UNet2DConditionModel(**UNET, **blocks, cross_attention_dim=8)


def load_unet(directory: Path, base: Path) -> Any:
    import diffusers

    return diffusers.UNet2DConditionModel.from_pretrained(directory)


def denoise(model: Any) -> torch.Tensor:
    return model(PIXELS, 3, torch.ones(1, 2, 8)).sample


def unet_with_lora(base: Path) -> Any:
    model = load_unet(base, base)
    model.requires_grad_(False)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    return model


def save_lora(model: Any, run: Path) -> None:
    import diffusers

    layers = peft.get_peft_model_state_dict(model)
    diffusers.StableDiffusionPipeline.save_lora_weights(str(run), unet_lora_layers=layers)


def load_lora(directory: Path, base: Path) -> Any:
    model = load_unet(base, base)
    model.load_lora_adapter(str(directory), prefix="unet", weight_name="pytorch_lora_weights.safetensors")
    return model


def write_pipeline(directory: Path) -> None:
    import diffusers

    words = directory.parent / "words"
    write_tokenizer(words, "bpe")
    text = transformers.CLIPTextConfig(**CLIP, vocab_size=300, max_position_embeddings=16, eos_token_id=6)
    diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4),
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=transformers.AutoTokenizer.from_pretrained(words, model_max_length=16),
        unet=unet(),
        scheduler=diffusers.DDIMScheduler(num_train_timesteps=8),
        safety_checker=None,
        feature_extractor=None,
    ).save_pretrained(str(directory))


def load_pipeline(directory: Path, base: Path) -> Any:
    import diffusers

    found = diffusers.DiffusionPipeline.from_pretrained(directory, safety_checker=None)
    found.set_progress_bar_config(disable=True)
    return found


def denoise_by_text(pipeline: Any) -> torch.Tensor:
    read: torch.Tensor = pipeline.text_encoder(IDS[:1])[0]
    return pipeline.unet(PIXELS, 3, read).sample


def paint(pipeline: Any) -> Any:
    steps = {"num_inference_steps": 2, "height": 8, "width": 8, "output_type": "np"}
    return pipeline(TEXTS[0], generator=torch.Generator().manual_seed(0), **steps).images


DIFFUSERS: dict[str, Row] = {
    "unet": Model("diffusers", lambda directory: unet().save_pretrained(directory), load_unet, denoise),
    "unet's lora": Model(
        "diffusers", lambda directory: unet().save_pretrained(directory), load_lora, denoise, unet_with_lora, save_lora
    ),
    "pipeline": Model(
        "diffusers",
        write_pipeline,
        load_pipeline,
        denoise_by_text,
        say=paint,
        parts=lambda pipeline: [pipeline.unet, pipeline.text_encoder],
    ),
}


# AdapterHub, in an environment of its own

HUB: dict[str, Row] = {kind: AdapterHub(kind) for kind in ("fusion", "fusion alone", "stack")}


ROWS: dict[str, Row] = {
    **{f"transformers, {name}": row for name, row in TRANSFORMERS.items()},
    **{f"peft, {name}": row for name, row in ADAPTERS.items()},
    "peft, xlora": adapter(mixed),
    "peft, adamss": needing("sklearn", adapter(partial(adapt, *PEFT["adamss"]))),
    **{f"sentence-transformers, {name}": row for name, row in SENTENCES.items()},
    "setfit": SETFIT,
    **{f"diffusers, {name}": row for name, row in DIFFUSERS.items()},
    **{f"adapters, {name}": row for name, row in HUB.items()},
}


@pytest.mark.parametrize("name", ROWS)
def test_a_run_of_a_library_comes_back_and_computes_the_same_bits(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    base, run = tmp_path / "base", tmp_path / "run"
    with quiet():
        skip_without(row.needs)
        row.write(tmp_path)
        out = carry(run, base, tmp_path)
        assert row.ask(out, base) == row.ask(run, base)
        assert tokens(out) == tokens(run)


def test_every_kind_of_adapter_that_peft_knows_has_a_row() -> None:
    assert {kind.value for kind in peft.PeftType} == {"XLORA"} | {kind for kind, _ in PEFT.values()}
