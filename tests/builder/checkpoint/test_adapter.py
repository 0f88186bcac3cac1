"""LoRA adapters are merged as their formula says, and as peft merges them where that is installed."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from cn_clip.clip.model import CLIP
from cnclip_builder.arch import Arch
from cnclip_builder.checkpoint.load import find_arch, load_checkpoint
from cnclip_builder.checkpoint.sources import fetch_checkpoint
from cnclip_builder.checkpoint.stage import open_checkpoint
from cnclip_builder.errors import CheckpointError
from safetensors.torch import save_file

from tests.builder.checkpoint.chinese_clip import TINY, StateDict, features, inputs, make_model
from tests.builder.checkpoint.test_hugging_face import our_features, require_equal
from tests.builder.damaged import complaint_of, cut, require_one_line_about, turned

if TYPE_CHECKING:
    from transformers import ChineseCLIPModel

QUERY = "text_model.encoder.layer.0.attention.self.query"
QKV = [f"vision_model.encoder.layers.1.self_attn.{part}_proj" for part in "qkv"]
PATCHES, WORDS = "vision_model.embeddings.patch_embedding", "text_model.embeddings.word_embeddings"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make_model(TINY).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def matrices(shape: tuple[int, ...], rank: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of a module whose weight has this shape."""
    out, *into = shape
    a = torch.randn(rank, *into)
    return a, torch.randn(out, rank, *[1 for _ in into[1:]]) * 0.1


def write_adapter(folder: Path, tensors: StateDict, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    described = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "someone/base", **config}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    save_file(
        {f"base_model.model.{name}": value.contiguous() for name, value in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def low_rank(model: ChineseCLIPModel, modules: list[str], rank: int = 4) -> StateDict:
    torch.manual_seed(11)
    made: StateDict = {}
    for module in modules:
        made[f"{module}.lora_A.weight"], made[f"{module}.lora_B.weight"] = matrices(
            tuple(model.get_submodule(module).weight.shape), rank
        )
    return made


def add_by_hand(model: ChineseCLIPModel, adapter: StateDict, factors: dict[str, float]) -> ChineseCLIPModel:
    """W + factor B A, written out, one entry of B and A at a time for a convolution."""
    with torch.no_grad():
        for module, factor in factors.items():
            weight = model.get_submodule(module).weight
            a, b = adapter[f"{module}.lora_A.weight"], adapter[f"{module}.lora_B.weight"]
            for rank in range(len(a)):
                column = b[:, rank].reshape(-1, *[1] * (weight.dim() - 1))
                weight.add_(factor * column * a[rank])
    return model


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({}, 2.0),
        ({"lora_alpha": 1}, 0.25),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"query": 32, "patch_embedding": 8}}, None),
        ({"alpha_pattern": {r"vision_model\..*": 20}, "rank_pattern": {"query": 4}}, None),
        ({"r": 99, "init_lora_weights": "gaussian", "fan_in_fan_out": False}, 2.0),
    ],
)
def test_merged_as_the_formula_says(base: Path, config: dict[str, Any], factor: float | None) -> None:
    model = make_model(TINY)
    adapter = low_rank(model, [QUERY, *QKV, PATCHES, "visual_projection"])
    write_adapter(base, adapter, **config)
    factors = dict.fromkeys([QUERY, *QKV, PATCHES, "visual_projection"], factor or 2.0)
    if factor is None and "query" in config["alpha_pattern"]:
        factors[QUERY] = 8.0
    elif factor is None:
        factors |= dict.fromkeys([*QKV, PATCHES], 5.0)
    merged = add_by_hand(model, adapter, factors)
    unmerged = features(make_model(TINY), *inputs(merged))
    theirs = features(merged, *inputs(merged))
    assert all(abs(theirs[tower] - unmerged[tower]).max() > 0.1 for tower in theirs)
    require_equal(our_features(base, *inputs(merged)), theirs, 1e-10)
    require_equal(our_features(base / "model.safetensors", *inputs(merged)), theirs, 1e-10)


def test_embeddings_and_what_takes_a_tensors_place(base: Path) -> None:
    model = make_model(TINY)
    torch.manual_seed(4)
    a, b = torch.randn(4, 21128), torch.randn(32, 4) * 0.1
    projection, bias = torch.randn(48, 64), torch.randn(32)
    write_adapter(
        base,
        {
            f"{WORDS}.lora_embedding_A": a,
            f"{WORDS}.lora_embedding_B": b,
            "visual_projection.weight": projection,
            f"{QUERY}.bias": bias,
        },
        modules_to_save=["visual_projection"],
        bias="lora_only",
    )
    with torch.no_grad():
        model.get_submodule(WORDS).weight.add_(2 * (b @ a).t())
        model.visual_projection.weight.copy_(projection)
        model.get_submodule(QUERY).bias.copy_(bias)
    require_equal(our_features(base, *inputs(model)), features(model, *inputs(model)), 1e-10)


def test_a_base_of_half_precision_stays_one(tmp_path: Path) -> None:
    """The sum is rounded to the base's type once, as if the merged model were saved in it."""
    model = make_model(TINY).half()
    model.save_pretrained(tmp_path / "base")
    adapter = low_rank(model, [QUERY])
    write_adapter(tmp_path / "base", adapter)
    arch = find_arch(tmp_path / "base", {}, ["odd"])
    name = QUERY.replace("text_model", "bert") + ".weight"
    made = load_checkpoint(tmp_path / "base", arch).state_dict[name]
    whole = (
        model.get_submodule(QUERY).weight.float()
        + 2 * adapter[f"{QUERY}.lora_B.weight"] @ adapter[f"{QUERY}.lora_A.weight"]
    )
    assert made.dtype == torch.float16
    assert torch.equal(made, whole.half())


def test_beside_a_checkpoint_of_cn_clip(tmp_path: Path, tiny_vit: Arch) -> None:
    torch.manual_seed(2)
    weights = CLIP(**tiny_vit.model_info).state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "cn.pt")
    module = "visual.transformer.resblocks.1.mlp.c_fc"
    a, b = matrices(tuple(weights[f"{module}.weight"].shape))
    write_adapter(tmp_path, {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, base_model_name_or_path=None)
    merged = load_checkpoint(tmp_path / "cn.pt", tiny_vit)
    assert load_checkpoint(tmp_path, tiny_vit).sha256 == merged.sha256
    assert torch.allclose(merged.state_dict[f"{module}.weight"], weights[f"{module}.weight"] + 2 * b @ a, atol=1e-6)
    for name, value in weights.items():
        assert name == f"{module}.weight" or torch.equal(merged.state_dict[name], value)


def test_an_adapter_in_a_folder_of_its_own(tmp_path: Path, base: Path) -> None:
    """As peft leaves it: its config says where the base is."""
    model = make_model(TINY)
    adapter = low_rank(model, QKV)
    own = write_adapter(tmp_path / "own", adapter, base_model_name_or_path=str(base))
    theirs = features(add_by_hand(model, adapter, dict.fromkeys(QKV, 2.0)), *inputs(model))
    require_equal(our_features(own, *inputs(model)), theirs, 1e-10)
    assert find_arch(own, {}, ["own"]).name == "own"
    write_adapter(own, adapter, base_model_name_or_path="../base")
    require_equal(our_features(own, *inputs(model)), theirs, 1e-10)


def test_the_hash_is_of_base_and_adapter(base: Path, tmp_path: Path, builder_log: pytest.LogCaptureFixture) -> None:
    arch = find_arch(base, {}, ["odd"])
    plain = load_checkpoint(base, arch).sha256
    write_adapter(base, low_rank(make_model(TINY), [QUERY]))
    facts = open_checkpoint(str(base), arch, tmp_path, "huggingface")
    files = [base / name for name in ("adapter_config.json", "adapter_model.safetensors", "model.safetensors")]
    lines = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in files)
    assert facts.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert set(facts.files) == {file.name for file in files}
    assert f"Merging the LoRA adapter of {base}" in builder_log.text
    write_adapter(base, low_rank(make_model(TINY), [QUERY]), lora_alpha=9)
    assert len({plain, facts.sha256, load_checkpoint(base, arch).sha256}) == 3


def another_base(model: ChineseCLIPModel, folder: Path) -> str:
    write_adapter(folder, {f"deep.{name}": value for name, value in low_rank(model, [QUERY]).items()})
    return rf"adapter of another base: it changes deep\.{QUERY}\.weight, which .* lacks; it was trained on someone/base: put"


def another_width(model: ChineseCLIPModel, folder: Path) -> str:
    write_adapter(
        folder, {f"{QUERY}.lora_A.weight": torch.zeros(4, 768), f"{QUERY}.lora_B.weight": torch.zeros(768, 4)}
    )
    return rf"of another base: it changes {QUERY}\.weight, which .* has \[32, 32\] and not \[768, 768\]"


def another_projection(model: ChineseCLIPModel, folder: Path) -> str:
    write_adapter(folder, {"visual_projection.weight": torch.zeros(512, 64)})
    return r"of another base: it changes visual_projection\.weight, which .* has \[48, 64\] and not \[512, 64\]"


def half_of_it(model: ChineseCLIPModel, folder: Path) -> str:
    write_adapter(folder, {f"{QUERY}.lora_A.weight": torch.zeros(4, 32)})
    return "lacks half of the matrices for"


def ranks_that_differ(model: ChineseCLIPModel, folder: Path) -> str:
    write_adapter(folder, {f"{QUERY}.lora_A.weight": torch.zeros(4, 32), f"{QUERY}.lora_B.weight": torch.zeros(32, 5)})
    return "of another base"


def flat_matrices(model: ChineseCLIPModel, folder: Path) -> str:
    write_adapter(folder, {f"{QUERY}.lora_A.weight": torch.zeros(0), f"{QUERY}.lora_B.weight": torch.zeros(32)})
    return "lacks half of the matrices for"


def integers(model: ChineseCLIPModel, folder: Path) -> str:
    whole = {name: value.int() for name, value in low_rank(model, [QUERY]).items()}
    write_adapter(folder, whole)
    return "as int32, and weights are FP32, FP16 or BF16"


def a_bias_of_its_own(model: ChineseCLIPModel, folder: Path) -> str:
    write_adapter(folder, {**low_rank(model, [QUERY]), f"{QUERY}.lora_B.bias": torch.zeros(32)})
    return r"lora_B\.bias, which is more than LoRA's two matrices: merge it with peft"


def torchs_attention(model: ChineseCLIPModel, folder: Path) -> str:
    a, b = matrices((64, 64))
    module = "visual.transformer.resblocks.0.attn.base_layer.out_proj"
    write_adapter(folder, {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b})
    return "changes torch's MultiheadAttention, .*: merge it with peft"


def without_weights(model: ChineseCLIPModel, folder: Path) -> str:
    write_adapter(folder, low_rank(model, [QUERY]))
    (folder / "adapter_model.safetensors").unlink()
    return "has adapter_config.json and no adapter_model.safetensors: fetch that too"


def with_settings(complaint: str, **config: Any) -> Callable[[ChineseCLIPModel, Path], str]:
    def write(model: ChineseCLIPModel, folder: Path) -> str:
        write_adapter(folder, low_rank(model, [QUERY]), **config)
        return complaint

    return write


BAD: dict[str, Callable[[ChineseCLIPModel, Path], str]] = {
    "another base": another_base,
    "another width": another_width,
    "another projection": another_projection,
    "half": half_of_it,
    "ranks that differ": ranks_that_differ,
    "flat": flat_matrices,
    "integers": integers,
    "lora_bias": a_bias_of_its_own,
    "MultiheadAttention": torchs_attention,
    "no weights": without_weights,
    "DoRA": with_settings("has use_dora, which is more than a sum of weights: merge it with peft", use_dora=True),
    "PiSSA": with_settings("has init_lora_weights 'pissa_niter_4', which is more", init_lora_weights="pissa_niter_4"),
    "activated LoRA": with_settings("has alora_invocation_tokens, which is more", alora_invocation_tokens=[670]),
    "trained tokens": with_settings("has trainable_token_indices, which is more", trainable_token_indices=[670]),
    "IA3": with_settings("is of an adapter of type IA3, and only LORA is merged here: merge it", peft_type="IA3"),
    "no type": with_settings("is of an adapter of type None", peft_type=None),
    "no alpha": with_settings("no numbers as lora_alpha and alpha_pattern", lora_alpha=None),
    "an alpha in words": with_settings("no numbers as lora_alpha and alpha_pattern", alpha_pattern={"query": "two"}),
    "a pattern that is none": with_settings("no numbers as lora_alpha and alpha_pattern", alpha_pattern={"(": 2}),
    "patterns in a list": with_settings("no numbers as lora_alpha and alpha_pattern", alpha_pattern=["query"]),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_what_can_not_be_merged(base: Path, bad: str) -> None:
    complaint = BAD[bad](make_model(TINY), base)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        find_arch(base, {}, ["odd"])
    require_one_line_about(base, str(caught.value))


def test_an_adapter_without_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    own = write_adapter(tmp_path / "own", low_rank(make_model(TINY), [QUERY]), base_model_name_or_path="/gone/base")
    for path in (own, own / "adapter_model.safetensors"):
        with pytest.raises(CheckpointError, match="an? (LoRA )?adapter without its base"):
            find_arch(path, {}, ["odd"])
    with pytest.raises(CheckpointError, match=r"without its base, /gone/base, which is not here: copy the base's"):
        fetch_checkpoint(str(own), Arch("odd", {}), tmp_path, "huggingface")
    write_adapter(own, low_rank(make_model(TINY), [QUERY]))
    with pytest.raises(
        CheckpointError, match=r"someone/base at main is not in Hugging Face's cache, and HF_HUB_OFFLINE"
    ):
        fetch_checkpoint(str(own), Arch("odd", {}), tmp_path, "huggingface")


def test_damaged_adapters(base: Path) -> None:
    write_adapter(base, low_rank(make_model(TINY), [QUERY]))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        whole = (base / name).read_bytes()
        told = 0
        for content in [*cut(whole), *turned(whole, 5, range(0, 60, 7)), b"[1]", b"{}", b"[" * 100_000]:
            (base / name).write_bytes(content)
            complaint = complaint_of(lambda: find_arch(base, {}, ["odd"]))
            told += complaint is not None
            assert complaint is None or ("\n" not in complaint and ":" in complaint)
        assert told > 10
        (base / name).write_bytes(whole)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["query", "value", "q_proj", "v_proj"]},
        {"target_modules": "all-linear", "use_rslora": True, "rank_pattern": {"query": 2}, "alpha_pattern": {"fc1": 3}},
        {"target_modules": ["patch_embedding", "word_embeddings", "dense"]},
        {"target_modules": ["query"], "modules_to_save": ["visual_projection"], "bias": "all"},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_as_peft_merges(base: Path, config: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft, to compare with its own merge")
    from transformers import ChineseCLIPModel

    tuned = peft.get_peft_model(ChineseCLIPModel.from_pretrained(base), peft.LoraConfig(r=4, lora_alpha=16, **config))
    torch.manual_seed(6)
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if "lora_" in name:
                value.normal_(std=0.2)
    shutil.rmtree(base)
    make_model(TINY).save_pretrained(base)
    tuned.save_pretrained(base)
    merged = tuned.merge_and_unload().eval()
    assert math.isfinite(float(merged.logit_scale))
    require_equal(our_features(base, *inputs(merged)), features(merged, *inputs(merged)), 1e-10)
