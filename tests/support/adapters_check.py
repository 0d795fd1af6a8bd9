"""Loads what petlpack wrote with AdapterHub, in an environment of its own, and compares it with plain formulas.

`adapters` pins an older Transformers than PEFT's tests use, so tests/exports/test_writers.py runs this as a script:
`python adapters_check.py cases.json` prints one JSON report per case. It imports nothing of petlpack.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

adapters: Any = importlib.import_module("adapters")
transformers: Any = importlib.import_module("transformers")

SIZES = {"vocab_size": 40, "max_position_embeddings": 24}
ENCODER = {
    **SIZES,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "num_labels": 3,
}
T5 = {"vocab_size": 40, "d_model": 12, "d_kv": 6, "d_ff": 20, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2}
GPT2 = {"vocab_size": 40, "n_positions": 24, "n_embd": 12, "n_layer": 2, "n_head": 2}
IDS = torch.tensor([[2, 5, 6, 7, 8, 3], [2, 9, 4, 6, 11, 3]])

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda x: torch.clamp(x, min=0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}

Call = tuple[tuple[Any, ...], Any]
"""The inputs and the output of a module in one forward pass."""


def build(kind: str) -> Any:
    """Return a small random model with AdapterHub's layers; norms are moved off their start, where they do nothing."""
    torch.manual_seed(7)
    if kind == "RobertaAdapterModel":
        model = adapters.RobertaAdapterModel(transformers.RobertaConfig(**ENCODER))
    else:
        family, sizes = next(
            (family, sizes)
            for family, sizes in (("Roberta", ENCODER), ("Bert", ENCODER), ("T5", T5), ("GPT2", GPT2))
            if kind.startswith(family)
        )
        model = getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**sizes))
        adapters.init(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model.eval()


def record(model: Any, names: set[str]) -> dict[str, Call]:
    """Return what each named module was given and gave in one forward pass."""
    calls: dict[str, Call] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls[name] = ((*args, *kwargs.values()), output)

        return note

    handles = [
        module.register_forward_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if name in names
    ]
    inputs = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        model(input_ids=IDS, **inputs)
    for handle in handles:
        handle.remove()
    return calls


def bottleneck(tensors: dict[str, Any], place: str, settings: dict[str, Any], x: Any) -> Any:
    """up(act(down x)) * scaling, written out."""
    down = x @ tensors[f"{place}.down.weight"].T + tensors[f"{place}.down.bias"]
    up = ACTIVATIONS[settings["activation"]](down) @ tensors[f"{place}.up.weight"].T + tensors[f"{place}.up.bias"]
    return up * settings["scaling"]


def norm(module: Any, x: Any) -> Any:
    """The layer norm of BERT, written out."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + module.eps) * module.weight + module.bias


def encoder_output(module: Any, args: tuple[Any, ...], act: Callable[[Any], Any], form: str) -> Any:
    """The output module of a BERT layer with an adapter of a form."""
    intermediate, inp = args
    x = intermediate @ module.dense.weight.T + module.dense.bias
    read = norm(module.LayerNorm, x + inp) if form == "pfeiffer" else x
    return norm(module.LayerNorm, act(read) + x + inp)


def t5_feed_forward(module: Any, args: tuple[Any, ...], act: Callable[[Any], Any], form: str) -> Any:
    """The feed-forward module of a T5 block with an adapter of a form."""
    (x, *_) = args
    n = x / torch.sqrt((x**2).mean(-1, keepdim=True) + module.layer_norm.variance_epsilon) * module.layer_norm.weight
    ff = module.DenseReluDense
    y = torch.clamp(n @ ff.wi.weight.T, min=0) @ ff.wo.weight.T
    return x + y + act(x if form == "parallel" else y + x)


def gpt2_output(module: Any, args: tuple[Any, ...], act: Callable[[Any], Any], form: str) -> Any:
    """The module behind GPT-2's mlp, which is given the mlp's output and the residual."""
    x, residual, *_ = args
    return residual + act(x) + x


def check_adapter(model: Any, case: dict[str, Any], tensors: dict[str, Any]) -> tuple[int, int, float]:
    """Return (tensors equal to the bit, tensors, largest difference from the formula) of a bottleneck adapter."""
    settings, kind = case["settings"], case["model"]
    formula = t5_feed_forward if kind.startswith("T5") else gpt2_output if kind.startswith("GPT2") else encoder_output
    places = {name.rsplit(".", 2)[0] for name in tensors}
    holders = {place: place.replace(".mlp", ".output_adapters") for place in places}
    calls = record(model, set(holders.values()))
    equal, worst = 0, 0.0
    for place, holder in holders.items():
        module = model.get_submodule(holder)
        adapter = module.adapters[case["name"]]
        for part, found in (("down", adapter.adapter_down[0]), ("up", adapter.adapter_up)):
            equal += same(found.weight, tensors[f"{place}.{part}.weight"])
            equal += same(found.bias, tensors[f"{place}.{part}.bias"])
        args, output = calls[holder]
        with torch.no_grad():
            plain = formula(module, args, partial(bottleneck, tensors, place, settings), settings["form"])
        worst = max(worst, float((output - plain).abs().max()))
    return equal, len(tensors), worst


def check_lora(model: Any, case: dict[str, Any], tensors: dict[str, Any]) -> tuple[int, int, float]:
    """Return (tensors equal to the bit, tensors, largest difference from the formula) of a LoRA."""
    settings = case["settings"]
    places = {name.rpartition(".")[0] for name in tensors}
    calls = record(model, places)
    equal, worst = 0, 0.0
    for place in places:
        module = model.get_submodule(place)
        a, b = tensors[f"{place}.lora_A"], tensors[f"{place}.lora_B"]
        lora = module.loras[case["name"]]
        equal += same(lora.lora_A, a) + same(lora.lora_B, b)
        (x, *_), output = calls[place]
        with torch.no_grad():
            if "enable" in settings:
                plain = x @ (module.weight + merged(a, b, settings).T) + module.bias
            else:
                plain = F.linear(x, module.weight + settings["scaling"] * (b @ a), module.bias)
        worst = max(worst, float((output - plain).abs().max()))
    return equal, len(tensors), worst


def merged(a: Any, b: Any, settings: dict[str, Any]) -> Any:
    """The change of a merged matrix (out, in): each enabled group's scaled product in its block of rows."""
    groups = sum(settings["enable"])
    products = iter([j @ i for i, j in zip(a.chunk(groups), b.chunk(groups), strict=True)])
    zero = torch.zeros(b.shape[0] // groups, a.shape[1])
    return settings["scaling"] * torch.cat([next(products) if enabled else zero for enabled in settings["enable"]])


def check_head(model: Any, case: dict[str, Any]) -> dict[str, Any]:
    """Report how many tensors of the head are in the model to the bit, and whether the head answers as its formula."""
    if "head" not in case:
        return {}
    head = load_file(case["head"])
    state = model.state_dict()
    equal = sum(name in state and same(state[name], tensor) for name, tensor in head.items())
    report: dict[str, Any] = {"head_equal": equal, "head": len(head)}
    if hasattr(model, "heads"):
        base = model.base_model_prefix
        with torch.no_grad():
            (_, output), logits = record(model, {base})[base], model(input_ids=IDS).logits
            names = sorted(head)  # 1.bias, 1.weight, 4.bias, 4.weight, or dense and out_proj: the same order
            weights = [head[name] for name in names]
            hidden = torch.tanh(output[0][:, 0] @ weights[1].T + weights[0])
            plain = hidden @ weights[3].T + weights[2]
        report["head_difference"] = float((logits - plain).abs().max())
        report["head_equal"] = sum(
            any(same(found, tensor) for name, found in state.items() if name.startswith("heads."))
            for tensor in head.values()
        )
    return report


def same(found: Any, tensor: Any) -> bool:
    """Tell whether two tensors are equal to the bit."""
    bits = found.detach().view(torch.int32)
    return bool(bits.shape == tensor.shape and torch.equal(bits, tensor.view(torch.int32)))


def check(case: dict[str, Any]) -> dict[str, Any]:
    """Load a directory and report on it; `error` says why it could not be loaded."""
    model = build(case["model"])
    info: dict[str, Any] = {}
    try:
        name = model.load_adapter(
            case["directory"], set_active=True, loading_info=info, use_safetensors=case["use_safetensors"]
        )
    except Exception as error:  # whatever AdapterHub raises is the answer
        return {"error": f"{type(error).__name__}: {error}"}
    assert name == case["name"], name
    model.eval()
    tensors = load_file(case["tensors"])
    equal, count, worst = (check_lora if case["kind"] == "lora" else check_adapter)(model, case, tensors)
    with torch.no_grad():
        inputs = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
        on = model(input_ids=IDS, **inputs)[0]
        model.set_active_adapters(None)
        off = model(input_ids=IDS, **inputs)[0]
    return {
        "equal": equal,
        "tensors": count,
        "difference": worst,
        "effect": float((on - off).abs().max()),
        "missing": info["missing_keys"],
        **check_head(model, case),
    }


def main() -> None:
    """Print a JSON list with a report for each case of the file that the command line names."""
    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps([check(case) for case in cases]))


if __name__ == "__main__":
    main()
