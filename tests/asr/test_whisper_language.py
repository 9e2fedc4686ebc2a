"""A language that Whisper lacks: its token, its trained row, saved and loaded in every way."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, PeftModel
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from tiny import save_whisper, whisper_tokenizer
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

from mambavox.adapters import apply_method, trainable_parameters
from mambavox.adapters.token_rows import SparseTokenRows, lighten_token_rows
from mambavox.asr.whisper_language import (
    add_language,
    generation_options,
    known_languages,
    language_token,
    prefix_ids,
    prepare_for,
    token_rows,
)
from mambavox.errors import ConfigError, HostError

SMALL: dict[str, Any] = {"bottleneck_dim": 4, "d_state": 3, "d_conv": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("whisper"))


def load(folder: Path) -> tuple[WhisperForConditionalGeneration, WhisperTokenizer]:
    return WhisperForConditionalGeneration.from_pretrained(folder), WhisperTokenizer.from_pretrained(folder)


def features(rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 16, 100, generator=torch.Generator().manual_seed(3))


def adapted(folder: Path, method: str = "mambadapter", options: dict[str, Any] = SMALL) -> tuple[Any, Any, int]:
    """A model trained for a few steps on a new language."""
    model, tokenizer = load(folder)
    index = add_language(model, tokenizer, "ckb")
    assert index is not None
    torch.manual_seed(1)
    model = apply_method(model, method, options, token_rows=[index])
    labels = torch.tensor([[*prefix_ids(model.get_base_model(), "ckb"), 5, 6, 7]] * 2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(4):
        model(input_features=features(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer, index


def logits(model: Any, index: int) -> torch.Tensor:
    with torch.no_grad():
        ids = torch.tensor([[257, index, 261, 265, 5]] * 2)
        return model(input_features=features(), decoder_input_ids=ids).logits


def test_a_new_token_and_its_first_row(folder: Path) -> None:
    model, tokenizer = load(folder)
    before, size = model.get_input_embeddings().weight.clone(), len(tokenizer)
    known = known_languages(model)
    assert known == {"<|de|>": tokenizer.convert_tokens_to_ids("<|de|>"), "<|en|>": known["<|en|>"]}
    assert add_language(model, tokenizer, "German") is None and len(tokenizer) == size
    index = add_language(model, tokenizer, "ckb")
    assert index == size and tokenizer.convert_ids_to_tokens(index) == "<|ckb|>"
    weight = model.get_input_embeddings().weight
    assert torch.equal(weight[:size], before[:size])
    torch.testing.assert_close(weight[index], before[list(known.values())].mean(0))
    assert model.proj_out.weight is weight, "still tied"
    assert add_language(model, tokenizer, "<|CKB|>") is None, "known now"
    other = add_language(model, tokenizer, "kab", like="en")
    assert other == index + 1
    assert torch.equal(model.get_input_embeddings().weight[other], before[known["<|en|>"]])
    assert tokenizer.decode([257, index, 72, 105], skip_special_tokens=True) == tokenizer.decode([72, 105])


def test_it_is_asked_for_and_never_said(folder: Path) -> None:
    model, tokenizer = load(folder)
    index = add_language(model, tokenizer, "ckb")
    assert prefix_ids(model, "ckb")[1] == index
    with torch.no_grad():
        model.get_input_embeddings().weight[index] *= 1000.0
    output = model.generate(features(), **generation_options(model, "ckb"), max_new_tokens=12)
    assert not (output == index).any()
    asked = model.generate(
        features(), **generation_options(model, "ckb"), max_new_tokens=3, return_dict_in_generate=True
    )
    assert asked.sequences[0, :4].tolist() == prefix_ids(model, "ckb")


def test_three_ways_of_loading(folder: Path, tmp_path: Path) -> None:
    model, tokenizer, index = adapted(folder)
    expected = logits(model, index)
    row = token_rows(model)
    assert row is not None
    assert not torch.allclose(row, model.get_base_model().get_input_embeddings().original_module.weight[[index]])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) < 60_000, "not the whole vocabulary"
    saved = WhisperTokenizer.from_pretrained(tmp_path)

    def base() -> Any:
        fresh, _ = load(folder)
        prepare_for(fresh, saved)
        return fresh

    # PEFT's own layer of rows adds up in another order than ours.
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base(), tmp_path).eval(), index), expected)
    inside = base()
    inside.load_adapter(str(tmp_path))
    torch.testing.assert_close(logits(inside.eval(), index), expected)
    # AutoPeftModel finds the tokenizer beside the adapter and makes room for its tokens.
    automatic = AutoPeftModel.from_pretrained(tmp_path)
    assert automatic.get_base_model().get_input_embeddings().weight.shape[0] == index + 1
    again = PeftModel.from_pretrained(base(), tmp_path, adapter_name="kurdish").eval()
    torch.testing.assert_close(logits(again, index), expected)
    lighten_token_rows(again)
    assert torch.equal(logits(again, index), expected)
    assert known_languages(base())["<|ckb|>"] == index


@pytest.mark.parametrize("method", ["bottleneck", "lora"])
def test_other_methods_train_it_too(folder: Path, method: str) -> None:
    model, _, _ = adapted(folder, method, {"r": 2} if method == "lora" else {"bottleneck_dim": 2})
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum("trainable_tokens_delta" in name for name in trained) == 1
    counts = trainable_parameters(model)
    assert counts["total"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_methods_that_cannot(folder: Path) -> None:
    model, _ = load(folder)
    with pytest.raises(ConfigError, match="ia3 cannot train rows of the token embeddings"):
        apply_method(model, "ia3", token_rows=[3])


def test_two_languages_in_one_batch(folder: Path) -> None:
    """Each adapter has its own row in the same place; a row of the batch is read and scored with its own."""
    model, _, index = adapted(folder)
    model.add_adapter("second", type(model.peft_config["default"])(**SMALL, trainable_token_indices=[index]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".second" in name:
                parameter.add_(torch.randn_like(parameter))
    names = ["default", "second"]
    mixed = logits_of(model, index, names)
    for row, name in enumerate(names):
        model.set_adapter(name)
        torch.testing.assert_close(mixed[row], logits(model, index)[row])
    assert not torch.allclose(mixed[0], mixed[1])


def test_rows_alone_give_what_the_whole_table_gives(folder: Path) -> None:
    """PEFT's own layer copies the table; ours does not. Results and gradients agree."""
    model, _, index = adapted(folder)
    ids = torch.tensor([[257, index, 261, 265, 5]] * 2)
    results = []
    for kind in (SparseTokenRows, TrainableTokensLayer):
        layers = [module for module in model.modules() if isinstance(module, TrainableTokensLayer)]
        assert len(layers) == 2, "embedding and output"
        for layer in layers:
            layer.__class__ = kind
        model.zero_grad()
        output = model(input_features=features(), decoder_input_ids=ids, labels=ids)
        output.loss.backward()
        gradient = next(p.grad for name, p in model.named_parameters() if "trainable_tokens_delta" in name)
        results.append((output.logits.detach(), gradient.clone()))
    for sparse, dense in zip(*results, strict=True):
        torch.testing.assert_close(sparse, dense)
    assert results[0][1].abs().max() > 0


def logits_of(model: Any, index: int, names: list[str]) -> torch.Tensor:
    with torch.no_grad():
        ids = torch.tensor([[257, index, 261, 265, 5]] * 2)
        return model(input_features=features(), decoder_input_ids=ids, adapter_names=names).logits


@pytest.mark.parametrize(
    ("language", "token"),
    [
        ("nld", "nl"),
        ("zh-CN", "zh"),
        ("cmn_hans_cn", "zh"),
        ("sv-SE", "sv"),
        ("Dutch", "nl"),
        ("<|CKB|>", "ckb"),
        ("jw", "jw"),
        ("jv", "jw"),
        ("tl", "tl"),
        ("fil_ph", "tl"),
        ("nb_no", "no"),
        ("kab", "kab"),
        ("yue", "yue"),
    ],
)
def test_tags_of_one_language_are_one_token(language: str, token: str) -> None:
    assert language_token(language) == f"<|{token}|>"


def test_mistakes(folder: Path) -> None:
    model, tokenizer = load(folder)
    with pytest.raises(ConfigError, match=r"language='klingon\?'.*such as ckb"):
        language_token("klingon?")
    with pytest.raises(ConfigError, match="language_like=xx; expected a language that the model knows: de, en"):
        add_language(model, tokenizer, "ckb", like="xx")
    with pytest.raises(ConfigError, match="language=kab; the model knows de, en"):
        prefix_ids(model, "kab")
    model.generation_config.lang_to_id = None
    with pytest.raises(HostError, match="made for one language"):
        add_language(model, whisper_tokenizer(), "ckb")
    assert generation_options(model, "ckb") == {}
