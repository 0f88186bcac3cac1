"""Models of Hugging Face's transformers: every form gives transformers' own features, row by row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from cn_clip.clip.model import CLIP
from cnclip_builder.arch import ARCH_NAMES, Arch, get_arch
from cnclip_builder.checkpoint.hugging_face import read_config, recipes
from cnclip_builder.checkpoint.load import expected_shapes, find_arch, load_checkpoint
from cnclip_builder.checkpoint.stage import find_arch_of, open_checkpoint
from cnclip_builder.checkpoint.towers import encode, load_tower
from cnclip_builder.errors import CheckpointError
from cnclip_builder.parity.distance import TOLERANCES, measure_parity
from cnclip_builder.tensors import TOWERS
from safetensors.torch import load_file, save_file

from tests.builder.checkpoint import chinese_clip
from tests.builder.checkpoint.chinese_clip import TINY, Features, changed, config_of, features, inputs, make_model
from tests.builder.damaged import complaint_of, cut, require_one_line_about, turned

if TYPE_CHECKING:
    from transformers import ChineseCLIPModel

VITS = [name for name in ARCH_NAMES if name != "RN50"]


@pytest.fixture(scope="module")
def model() -> ChineseCLIPModel:
    return make_model(TINY)


@pytest.fixture(scope="module")
def saved(model: ChineseCLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, as `save_pretrained` writes it. Tests that change it change a copy."""
    folder = tmp_path_factory.mktemp("saved") / "fine-tuned"
    model.save_pretrained(folder)
    return folder


def copy(saved: Path, folder: Path) -> Path:
    return Path(shutil.copytree(saved, folder / "copy"))


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def change_config(folder: Path, half: str | None, **settings: Any) -> Path:
    config = read(folder / "config.json")
    (config[f"{half}_config"] if half else config).update(settings)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def our_features(path: Path, images: torch.Tensor, texts: torch.Tensor) -> dict[str, Features]:
    checkpoint = load_checkpoint(path, find_arch(path, {}, ["odd"]))
    return {
        tower: encode(load_tower(checkpoint, tower), given.numpy())
        for tower, given in zip(TOWERS, (images, texts), strict=True)
    }


def require_equal(ours: dict[str, Features], theirs: dict[str, Features], tolerance: float = 1e-9) -> None:
    """Row by row, also after centring; a mix-up of rows, heads or tensors is of the order of 1 then."""
    for tower in TOWERS:
        parity = measure_parity(ours[tower], theirs[tower])
        assert parity.cosine_distance < tolerance
        assert parity.centred_distance < 10 * tolerance


def sharded(model: ChineseCLIPModel, folder: Path) -> Path:
    model.save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    return folder


def one_file(model: ChineseCLIPModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder / "model.safetensors"


def under_a_trainers_names(model: ChineseCLIPModel, folder: Path) -> Path:
    folder.mkdir()
    model.config.save_pretrained(folder)
    named = {f"model.clip.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": named, "loops": {}}, folder / "epoch=3.ckpt.pt")
    return folder


def one_of_several_files(model: ChineseCLIPModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"of another time")
    torch.save({"lr": 1}, folder / "training_args.bin")
    return folder


def in_an_old_configs_words(model: ChineseCLIPModel, folder: Path) -> Path:
    """transformers 4.2x wrote the halves' settings twice, and what `_dict` says counts."""
    model.save_pretrained(folder)
    config = read(folder / "config.json")
    config["vision_config_dict"] = {"num_attention_heads": config["vision_config"]["num_attention_heads"]}
    config["vision_config"]["num_attention_heads"] = 8
    config["text_config_dict"] = None
    (folder / "config.json").write_text(json.dumps(config))
    return folder


FORMS: dict[str, Callable[[ChineseCLIPModel, Path], Path]] = {
    "a folder": lambda model, folder: one_file(model, folder).parent,
    "shards": sharded,
    "their index": lambda model, folder: sharded(model, folder) / "model.safetensors.index.json",
    "one file, its config beside it": one_file,
    "pickled": chinese_clip.save_bin,
    "pickled shards": lambda model, folder: chinese_clip.save_bin(model, folder, shards=3),
    "a trainer's": under_a_trainers_names,
    "beside others": one_of_several_files,
    "an old config": in_an_old_configs_words,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_transformers_features(tmp_path: Path, model: ChineseCLIPModel, form: str) -> None:
    path = FORMS[form](model, tmp_path / "form")
    require_equal(our_features(path, *inputs(model)), features(model, *inputs(model)), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    """The file's numbers are taken as they are: computed on in FP32, as transformers does when it is asked for that."""
    from transformers import ChineseCLIPModel

    make_model(TINY).to(dtype).save_pretrained(tmp_path / "half")
    half = ChineseCLIPModel.from_pretrained(tmp_path / "half", dtype=torch.float32).eval()
    require_equal(our_features(tmp_path / "half", *inputs(half)), features(half, *inputs(half)), 1e-11)


def test_cn_clips_model_with_the_mapped_weights(saved: Path, model: ChineseCLIPModel) -> None:
    arch = find_arch(saved, {}, ["odd"])
    reference = CLIP(**arch.model_info).eval()
    reference.load_state_dict(dict(load_checkpoint(saved, arch).state_dict), strict=True)
    images, texts = inputs(model)
    with torch.inference_mode():
        theirs = {"image": reference.encode_image(images).numpy(), "text": reference.encode_text(texts).numpy()}
    require_equal(theirs, features(model, images, texts), 1e-11)
    require_equal(our_features(saved, images, texts), theirs, 1e-11)


@pytest.mark.parametrize(
    ("text", "vision"),
    [
        ({"num_hidden_layers": 3}, {}),
        ({"max_position_embeddings": 128, "vocab_size": 21200, "type_vocab_size": 1}, {"image_size": 48}),
        ({"hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 100}, {"patch_size": 4, "image_size": 20}),
        ({"hidden_act": "gelu_new"}, {"hidden_size": 80, "intermediate_size": 320, "num_attention_heads": 1}),
        ({"hidden_act": "relu"}, {"num_hidden_layers": 5, "image_size": 35}),  # a rest beyond 4 patches of 8
        ({"hidden_act": "silu", "hidden_size": 768, "num_attention_heads": 8}, {}),  # not cn_clip's 12 heads
    ],
)
def test_other_sizes(tmp_path: Path, text: dict[str, Any], vision: dict[str, Any]) -> None:
    odd = make_model(changed(text, vision))
    odd.save_pretrained(tmp_path / "odd")
    require_equal(our_features(tmp_path / "odd", *inputs(odd)), features(odd, *inputs(odd)), 1e-10)


@pytest.mark.parametrize("name", VITS)
def test_published_sizes(tmp_path: Path, name: str) -> None:
    """Their tensors' names and shapes, without their numbers, and their configs; see the slow test for those."""
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    with torch.device("meta"):
        large = ChineseCLIPModel(ChineseCLIPConfig(**config_of(get_arch(name))))
    shapes = {tensor: tuple(value.shape) for tensor, value in large.state_dict().items()}
    made = {ours: recipe.shape(tmp_path, shapes) for ours, recipe in recipes(tmp_path, shapes).items()}
    assert made == expected_shapes(get_arch(name))
    large.config.save_pretrained(tmp_path)
    assert get_arch(name).computes_as({**get_arch(name).model_info, **read_config(tmp_path / "config.json")})


def test_what_a_config_leaves_out_is_transformers_default(tmp_path: Path) -> None:
    from transformers import ChineseCLIPConfig

    for half in ({}, {"text_config": {}, "vision_config": None}):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "chinese_clip", **half}))
        told = read_config(tmp_path / "config.json")
        default = ChineseCLIPConfig()
        assert (
            told["vision_head_width"] == default.vision_config.hidden_size // default.vision_config.num_attention_heads
        )
        assert told["embed_dim"] == default.projection_dim
        assert told["image_resolution"] == default.vision_config.image_size
        for ours, theirs in (
            ("vision_layers", "num_hidden_layers"),
            ("vision_width", "hidden_size"),
            ("vision_patch_size", "patch_size"),
        ):
            assert told[ours] == getattr(default.vision_config, theirs)
        for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "hidden_act"):
            assert told[f"text_{key}"] == getattr(default.text_config, key)
        assert told["text_max_position_embeddings"] == default.text_config.max_position_embeddings
        assert told["text_type_vocab_size"] == default.text_config.type_vocab_size
        assert told["vocab_size"] == default.text_config.vocab_size


def test_one_hash_of_many_files(tmp_path: Path, model: ChineseCLIPModel, saved: Path) -> None:
    """One file is its own; of shards it is the digest of their digests; a config changes neither."""
    import hashlib

    arch = find_arch(saved, {}, ["odd"])
    whole = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    assert load_checkpoint(saved, arch).sha256 == load_checkpoint(saved / "model.safetensors", arch).sha256 == whole
    folder = sharded(model, tmp_path / "shards")
    files = sorted(folder.glob("*.safetensors"))
    lines = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in files)
    facts = open_checkpoint(str(folder), arch, tmp_path, "huggingface")
    assert facts.sha256 == hashlib.sha256(lines.encode()).hexdigest() != whole
    assert facts.files == tuple(file.name for file in files)


def test_a_folders_vocabulary(tmp_path: Path, saved: Path) -> None:
    """It counts if it has other tokens than cn_clip's."""
    folder = copy(saved, tmp_path)
    ours = get_arch("RN50").vocabulary_file.read_text(encoding="utf-8").split("\n")
    (folder / "vocab.txt").write_text("\n".join(ours), encoding="utf-8")
    assert find_arch_of(str(folder), {}, "odd").vocabulary is None
    ours[500], ours[501] = ours[501], ours[500]
    (folder / "vocab.txt").write_text("\n".join(ours), encoding="utf-8")
    assert find_arch_of(str(folder), {}, "odd").vocabulary == folder / "vocab.txt"


SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}


def clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPModel

    CLIPModel(CLIPConfig(text_config=SMALL, vision_config=SMALL)).save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    from transformers import SiglipConfig, SiglipModel

    SiglipModel(SiglipConfig(text_config=SMALL, vision_config=SMALL)).save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(**SMALL)).save_pretrained(folder)
    return folder


FAMILIES = {clip: "an OpenAI CLIP model", siglip: "a SigLIP model", bert: "a BERT "}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_named(tmp_path: Path, family: Callable[[Path], Path]) -> None:
    """By their config, and without one by their tensors."""
    folder = family(tmp_path / "other")
    with pytest.raises(CheckpointError, match=rf"other is {FAMILIES[family]}.*not a Chinese-CLIP.*: use a"):
        find_arch(folder, {}, ["odd"])
    (folder / "config.json").unlink()
    for path in (folder, folder / "model.safetensors"):
        with pytest.raises(CheckpointError, match=rf" is {FAMILIES[family]}.*not a Chinese-CLIP.*: use a"):
            find_arch(path, {}, ["odd"])
        with pytest.raises(CheckpointError, match=rf" is {FAMILIES[family]}.*not a Chinese-CLIP.*: use a"):
            load_checkpoint(path, get_arch("ViT-B-16"))


@pytest.mark.parametrize("part", ["text_model", "vision_model"])
def test_half_a_model_is_told(tmp_path: Path, model: ChineseCLIPModel, part: str) -> None:
    getattr(model, part).save_pretrained(tmp_path / "half")
    which = part.partition("_")[0].replace("vision", "image")
    with pytest.raises(CheckpointError, match=rf"is the {which} half of a Chinese-CLIP model, not a Chinese-CLIP"):
        find_arch(tmp_path / "half", {}, ["odd"])


@pytest.mark.parametrize("model_type", ["chinese_clip_v9", None, 3, ["clip"]])
def test_a_type_that_nobody_knows(tmp_path: Path, saved: Path, model_type: Any) -> None:
    folder = change_config(copy(saved, tmp_path), None, model_type=model_type)
    with pytest.raises(CheckpointError, match="is a model of type .*, not a Chinese-CLIP: use a ChineseCLIPModel"):
        find_arch(folder, {}, ["odd"])


@pytest.mark.parametrize(
    ("half", "key", "value", "complaint"),
    [
        ("text", "hidden_size", 64, "text_hidden_size 32 by its tensors, and its config.json says 64"),
        ("text", "num_hidden_layers", 3, "text_num_hidden_layers 2 by its tensors"),
        ("text", "vocab_size", 30522, "vocab_size 21128 by its tensors"),
        ("text", "max_position_embeddings", 512, "text_max_position_embeddings 80 by its tensors"),
        ("text", "intermediate_size", 128, "text_intermediate_size 64 by its tensors"),
        ("text", "type_vocab_size", 1, "text_type_vocab_size 2 by its tensors"),
        ("vision", "hidden_size", 128, "4 times hidden_size, 512: it can't be built"),
        ("vision", "intermediate_size", 200, "4 times hidden_size, 256: it can't be built"),
        ("vision", "num_hidden_layers", 12, "vision_layers 2 by its tensors"),
        ("vision", "image_size", 224, "image_resolution 32 by its tensors"),
        ("vision", "patch_size", 16, "vision_patch_size 8 by its tensors"),
        ("vision", "hidden_act", "gelu", "vision_config.hidden_act is 'gelu', and cn_clip's model has 'quick_gelu'"),
        ("vision", "layer_norm_eps", 1e-6, "vision_config.layer_norm_eps is 1e-06, and cn_clip's model has 1e-05"),
        ("vision", "num_channels", 1, "vision_config.num_channels is 1"),
        ("vision", "num_attention_heads", 7, "can't be divided among 7 and 2 heads"),
        ("vision", "num_attention_heads", 0, "vision_config.num_attention_heads is 0 and no size"),
        ("vision", "image_size", [32, 64], r"vision_config.image_size is \[32, 64\] and no size"),
        ("text", "num_attention_heads", "2", "text_config.num_attention_heads is '2' and no size"),
        ("text", "hidden_act", "mish", "text_config.hidden_act is 'mish', and cn_clip's model has gelu, relu"),
        ("text", "hidden_act", ["gelu"], "text_config.hidden_act is"),
        ("text", "layer_norm_eps", 1e-5, "text_config.layer_norm_eps is 1e-05, and cn_clip's model has 1e-12"),
        ("text", "position_embedding_type", "relative_key", "position_embedding_type is 'relative_key'"),
        (None, "projection_dim", 512, "embed_dim 48 by its tensors, and its config.json says 512"),
        (None, "text_config", [1], "text_config is no JSON object: fetch it again"),
    ],
)  # fmt: skip
def test_a_config_that_contradicts(
    tmp_path: Path, saved: Path, half: str | None, key: str, value: Any, complaint: str
) -> None:
    folder = change_config(copy(saved, tmp_path), half, **{key: value})
    with pytest.raises(CheckpointError, match=complaint) as caught:
        find_arch(folder, {}, ["odd"])
    require_one_line_about(folder, str(caught.value))


def test_heads_that_contradict_the_arch_that_is_asked_for(tmp_path: Path) -> None:
    """The shapes are the same with any number of heads, so nothing else would tell."""
    config = config_of(get_arch("ViT-B-16"))
    config["vision_config"] |= {"num_hidden_layers": 1, "num_attention_heads": 8}
    config["text_config"] |= {"num_hidden_layers": 1}
    make_model(config).save_pretrained(tmp_path / "eight")
    info = {**get_arch("ViT-B-16").model_info, "vision_layers": 1, "text_num_hidden_layers": 1}
    with pytest.raises(CheckpointError, match=r"vision_head_width 64 .*config\.json .*says 96"):
        load_checkpoint(tmp_path / "eight", Arch("asked", info))
    assert find_arch(tmp_path / "eight", {}, ["eight"]).vision_head_width == 96


def test_missing_shards(tmp_path: Path, model: ChineseCLIPModel) -> None:
    folder = sharded(model, tmp_path / "shards")
    first, *others = sorted(folder.glob("*.safetensors"))
    with pytest.raises(CheckpointError, match=rf"{first.name} is one of several shards: name their folder"):
        find_arch(first, {}, ["odd"])
    index = (folder / "model.safetensors.index.json").read_text()
    first.rename(hidden := tmp_path / first.name)
    with pytest.raises(CheckpointError, match=rf"lacks 1 of {1 + len(others)} shards, {first.name}: fetch them too"):
        find_arch(folder, {}, ["odd"])
    hidden.rename(first)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(
        CheckpointError, match="holds shards, .*and no index .*: fetch model.safetensors.index.json too"
    ):
        find_arch(folder, {}, ["odd"])
    for places, complaint in (
        ({"logit_scale": others[-1].name}, "350 tensors missing"),
        ({**json.loads(index)["weight_map"], "text_model.new": first.name}, "lacks 1 tensors that its index says"),
        ({"logit_scale": "../secret.safetensors"}, "names a shard outside its folder"),
        ({"logit_scale": "/etc/passwd"}, "names a shard outside its folder"),
        ({}, "no weight_map"),
        ({"logit_scale": 3}, "no weight_map"),
        ([1], "no weight_map"),
    ):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        with pytest.raises(CheckpointError, match=complaint) as caught:
            load_checkpoint(folder, get_arch("ViT-B-16"))
        require_one_line_about(folder, str(caught.value))


def test_a_damaged_index_or_config(tmp_path: Path, model: ChineseCLIPModel) -> None:
    folder = sharded(model, tmp_path / "shards")
    for name in ("model.safetensors.index.json", "config.json"):
        whole = (folder / name).read_bytes()
        told = 0
        for content in [*cut(whole), *turned(whole, 5, times=60), b"[" * 100_000, b"null", b"[]", b"\xff"]:
            (folder / name).write_bytes(content)
            complaint = complaint_of(lambda: find_arch(folder, {}, ["odd"]))
            told += complaint is not None
            assert complaint is None or ("\n" not in complaint and ":" in complaint)
        assert told > 20
        (folder / name).write_bytes(whole)


def header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Writes another header before the same numbers."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    content = json.loads(whole[8 : 8 + length])
    change(content)
    text = json.dumps(content).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


Change = Callable[[dict[str, Any]], Any]
QUERY, KEY = (f"vision_model.encoder.layers.0.self_attn.{part}_proj.weight" for part in "qk")
LIES: dict[str, tuple[Change, str]] = {
    "beyond the end": (lambda told: told[QUERY].update(data_offsets=[0, 1 << 40]), "fetch it again"),
    "one before the other": (lambda told: told[QUERY].update(data_offsets=[64, 0]), "fetch it again"),
    "over one another": (lambda told: told[QUERY].update(data_offsets=told[KEY]["data_offsets"]), "fetch it again"),
    "of another size": (lambda told: told[QUERY].update(shape=[64, 65]), "fetch it again"),
    "of a type that is none": (lambda told: told[QUERY].update(dtype="F33"), "fetch it again"),
    "of negative size": (lambda told: told[QUERY].update(shape=[-64, -64]), "fetch it again"),
    "integers": (lambda told: told[QUERY].update(dtype="I32"), "as int32, and weights are FP32, FP16 or BF16"),
    "of another shape": (lambda told: told[QUERY].update(shape=[32, 128]), "of several shapes, so the file is damaged"),
    "of other shapes": (
        lambda told: [told[QUERY.replace("q_", f"{part}_")].update(shape=[32, 128]) for part in "qkv"], "other shapes",
    ),
    "of other axes": (lambda told: told["vision_model.embeddings.class_embedding"].update(shape=[8, 8]), "other shapes"),
    "flat": (lambda told: told["vision_model.embeddings.patch_embedding.weight"].update(shape=[12288]), "number of axes"),
    "of no square": (
        lambda told: told["vision_model.embeddings.position_embedding.weight"].update(shape=[16, 68]), "of a square",
    ),
    "without a name": (lambda told: told.update({"x": told.pop(QUERY)}), "lacks vision_model.*q_proj.weight"),
    "with a huge number": (
        lambda told: told.update({QUERY.replace("layers.0", "layers.9999999"): told.pop(QUERY)}), "lacks vision_model",
    ),
    "a layer with a huge number": (
        lambda told: told.update(
            {name.replace("layer.1.", "layer.987654321."): told.pop(name) for name in list(told) if "layer.1." in name}
        ), r"bert\.encoder\.layer\.1 is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies(tmp_path: Path, saved: Path, lie: str) -> None:
    folder = copy(saved, tmp_path)
    (folder / "config.json").unlink()
    change, complaint = LIES[lie]
    header(folder / "model.safetensors", change)
    arch = find_arch(saved, {}, ["odd"])
    insisted = {"text_num_attention_heads": 2, "vision_head_width": 16}
    with pytest.raises(CheckpointError, match=complaint) as caught:
        find_arch(folder, insisted, ["odd"])
        open_checkpoint(str(folder), arch, tmp_path, "huggingface")
    require_one_line_about(folder, str(caught.value))


@pytest.mark.parametrize("length", [0, 7, 1 << 20, 1 << 62])
def test_a_header_whose_length_lies(tmp_path: Path, saved: Path, length: int) -> None:
    folder = copy(saved, tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(CheckpointError, match=r"model\.safetensors can't be read .*: fetch it again"):
        find_arch(folder, {}, ["odd"])


def test_tensors_that_are_missing_or_too_many(tmp_path: Path, saved: Path) -> None:
    folder = copy(saved, tmp_path)
    arch = find_arch(folder, {}, ["odd"])
    tensors = load_file(saved / "model.safetensors")
    for name, complaint in (
        ("logit_scale", "such as logit_scale"),
        ("vision_model.post_layernorm.bias", "such as visual.ln_post.bias"),
        (KEY, rf"lacks {KEY}: save the whole model"),
        ("visual_projection.weight", "visual.proj"),
        ("text_model.encoder.layer.0.attention.self.key.bias", "such as bert.encoder.layer.0.attention.self.key.bias"),
    ):
        save_file({other: value for other, value in tensors.items() if other != name}, folder / "model.safetensors")
        for read_it in (lambda: load_checkpoint(folder, arch), lambda: find_arch(folder, {}, ["odd"])):
            with pytest.raises(CheckpointError, match=complaint):
                read_it()
    save_file({**tensors, "text_model.pooler.dense.bias": torch.zeros(1)}, folder / "model.safetensors")
    load_checkpoint(folder, arch)
    save_file({**tensors, "text_model.crown": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensor unknown, such as bert\.crown"):
        load_checkpoint(folder, arch)


def test_folders_without_a_checkpoint_or_with_several(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        CheckpointError, match=r"is a folder: give the path .*, one with config\.json and model\.safetensors"
    ):
        find_arch(tmp_path / "empty", {}, ["odd"])
    folder = copy(saved, tmp_path)
    (folder / "model.safetensors").rename(folder / "epoch1.safetensors")
    assert find_arch(folder, {}, ["odd"]).resolution == 32
    shutil.copy(folder / "epoch1.safetensors", folder / "epoch2.safetensors")
    with pytest.raises(CheckpointError, match=r"several checkpoints, epoch1\.s\S+, epoch2\.s\S+: name one of them"):
        find_arch(folder, {}, ["odd"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", VITS)
def test_published_sizes_with_their_numbers(tmp_path: Path, name: str) -> None:
    large = make_model(config_of(get_arch(name)))
    folder = tmp_path / "large"
    large.save_pretrained(folder, max_shard_size="500MB")
    images, texts = inputs(large, 2)
    theirs = features(large, images, texts)
    del large
    assert find_arch(folder, {}, ["large"]).name == name
    require_equal(our_features(folder, images, texts), theirs, TOLERANCES["fp32"].cosine_distance)
