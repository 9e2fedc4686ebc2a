"""Presets: the paper's rows and counts, and its settings."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from mambavox.adapters import METHODS, apply_method, trainable_parameters
from mambavox.errors import ConfigError
from mambavox.evaluation.compare.faithful import DEVIATIONS, RECIPES, make_faithful
from mambavox.evaluation.compare.grid import Task, Variant
from mambavox.evaluation.compare.listing import list_variants
from mambavox.evaluation.compare.presets import (
    PRESETS,
    ablation,
    choose_variants,
    few_shot,
    scaling,
    table1,
    whisper_base,
)

# Figure 2 of the paper, from the plot in the authors' repository: trained parameters by width.
FIGURE_2 = {
    "bottleneck": {
        2: 66_072,
        3: 84_516,
        4: 102_960,
        6: 139_848,
        8: 176_736,
        12: 250_512,
        16: 324_288,
        21: 416_508,
        24: 471_840,
        32: 619_392,
        38: 730_056,
        48: 914_496,
    },
    "conformer": {
        2: 103_776,
        3: 131_856,
        4: 159_936,
        6: 216_096,
        8: 272_256,
        12: 384_576,
        16: 496_896,
        21: 637_296,
        24: 721_536,
        32: 946_176,
    },
    "mambadapter": {
        12: 64_824,
        16: 84_124,
        21: 112_497,
        24: 130_788,
        32: 185_900,
        38: 235_106,
        48: 326_076,
        64: 504_652,
        77: 678_713,
        96: 977_004,
    },
}
TASKS = (Task("esc50", "a"), Task("speech_commands", "b", settings={"epochs": 3}))


@pytest.mark.parametrize("method", FIGURE_2)
def test_the_papers_figure_2(method: str) -> None:
    rows = list_variants(choose_variants(scaling(()), [Variant(method, method)]))
    assert {row["bottleneck_dim"]: row["parameters"] for row in rows} == FIGURE_2[method]


def test_the_rows_of_table_1() -> None:
    """In millions; the paper copies BitFit (0.12), prompts (0.27) and prefixes (0.26) from its predecessor.

    The predecessor itself prints 102 K, 230 K and 221 K, which is what there is here.
    """
    grid = table1(())
    counts = {row["variant"]: row["parameters"] for row in list_variants(grid)}
    assert {name: round(counts[name] / 1e6, 2) for name in counts if name != "full fine-tuning"} == {
        "linear probe": 0.0,
        "BitFit": 0.1,
        "deep prompts": 0.23,
        "prefixes": 0.22,
        "LoRA": 0.26,
        "bottleneck, ffn": 0.25,
        "conformer, ffn": 0.27,
        "MambAdapter, ffn": 0.06,
        "bottleneck, both": 0.5,
        "conformer, both": 0.54,
        "MambAdapter, both": 0.11,
    }


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_grid_of_known_methods(name: str) -> None:
    tasks = [replace(task, kind="whisper", settings={}) for task in TASKS] if name == "whisper-base" else TASKS
    grid = PRESETS[name](tasks)
    assert {variant.method for variant in grid.variants} <= METHODS.keys()
    assert len(grid.tasks) == (10 if name == "few-shot" else 2)
    assert len(PRESETS[name](()).variants) == len(grid.variants) > 4


def test_the_ablation_changes_one_thing_at_a_time() -> None:
    grid = ablation(())
    whole = grid.variants[0]
    assert grid.reference == whole.name
    for variant in grid.variants[1:]:
        changed = {key for key in variant.options if variant.options[key] != whole.options.get(key)}
        assert len(changed) == 1
    counts = {row["variant"]: row["parameters"] for row in list_variants(grid)}
    assert counts["no sharing"] - counts["MambAdapter"] == 276_144 + 12 - 64_824
    assert counts["no Mamba"] == 64_824 - 12 * 2_136


def test_the_adapters_for_whisper_base_have_at_most_one_percent_of_it() -> None:
    sizes = {"d_model": 512, "encoder_attention_heads": 8, "decoder_attention_heads": 8, "vocab_size": 51865}
    layers = {
        f"{stack}_{what}": n for stack in ("encoder", "decoder") for what, n in (("layers", 6), ("ffn_dim", 2048))
    }
    counts = {}
    for variant in whisper_base(()).variants:
        with torch.device("meta"):
            model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **layers))
        adapted = apply_method(model, variant.method, variant.options, head=[], check=False)
        counts[variant.name] = trainable_parameters(adapted)["adapter"]
    assert counts.pop("full fine-tuning") == 71_825_920
    third = counts.pop("MambAdapter, residual, a third")
    assert all(0.98 * 728_772 < count <= 728_772 for count in counts.values()) and third < 728_772 / 3
    assert counts["MambAdapter, residual"] < counts["bottleneck"] == 728_772 <= 0.0101 * 72_593_920


def test_a_preset_for_whisper_refuses_other_tasks() -> None:
    with pytest.raises(ConfigError, match="task esc50 is of kind classify; expected esc50=whisper:"):
        whisper_base(TASKS)


def test_few_shot_columns() -> None:
    grid = few_shot(TASKS)
    assert [task.settings["shots"] for task in grid.tasks] == [1, 2, 4, 8, 16] * 2
    assert grid.tasks[0].name == "esc50, 1 per class"
    assert grid.tasks[5].settings["epochs"] == 3
    variant = grid.variants[0]
    assert grid.config(variant, grid.tasks[3], 0, 0.1).shots == 8


def test_methods_restrict_a_preset() -> None:
    grid = choose_variants(scaling(()), [Variant("mambadapter", "mambadapter"), Variant("linear", "linear")])
    assert [variant.method for variant in grid.variants] == ["mambadapter"] * 10 + ["linear"]
    own = Variant("mine", "mambadapter", {"bottleneck_dim": 5})
    assert choose_variants(scaling(()), [own]).variants == (own,)
    assert choose_variants(ablation(()), [own]).reference is None


def test_the_papers_settings() -> None:
    grid = make_faithful(table1((Task("urbansound8k", "a"), *TASKS)))
    config = grid.config(grid.variants[0], grid.tasks[0], 10, 0.1)
    assert (config.epochs, config.batch_size, config.spec_augment, config.crop_seconds) == (30, 32, True, 3.975)
    assert (config.weight_decay, config.warmup_ratio, config.max_grad_norm) == (0.1, 0.0, 0.0)
    assert (config.pooling, config.position_embeddings, config.protocol) == ("mean", "zero", "paper")
    assert grid.tasks[2].settings["epochs"] == 3, "what is asked for comes before the paper"
    shorter = make_faithful(replace(table1(TASKS), settings={"epochs": 2}))
    assert [shorter.config(shorter.variants[0], task, 0, 0.1).epochs for task in shorter.tasks] == [2, 3]
    assert "epochs = 2" in shorter.remarks[0]
    rates = {variant.method: grid.rates(variant) for variant in grid.variants}
    assert (rates["mambadapter"], rates["full"], rates["prompt"]) == ((5e-3,), (5e-5,), (1e-2,))
    assert all(variant.options["init"] == "paper" for variant in grid.variants if variant.method == "mambadapter")
    remarks = "\n".join(grid.remarks)
    for setting in (
        "weight_decay = 0.1",
        "pooling = mean",
        "urbansound8k: crop_seconds = 3.975, epochs = 30",
        "full 5e-05",
    ):
        assert setting in remarks
    assert all(deviation in remarks for deviation in DEVIATIONS)
    with pytest.raises(ConfigError, match=r"task tones: the paper has no such corpus; expected tasks named esc50"):
        make_faithful(table1((Task("tones", "a"),)))


@pytest.mark.parametrize("corpus", RECIPES)
def test_the_papers_patches(corpus: str, backbone: Callable[[str], str]) -> None:
    """With 128 mel bands and a stride of 10 frames the model sees exactly the patches of the paper's."""
    from transformers import ASTConfig, ASTFeatureExtractor

    from mambavox.training.front_end import FrontEnd

    frames = {"esc50": 500, "urbansound8k": 400, "speech_commands": 100, "fluent_speech_commands": 400, "iemocap": 800}
    extractor = ASTFeatureExtractor()
    FrontEnd(extractor, ASTConfig(), RECIPES[corpus].settings()["crop_seconds"])
    columns = (frames[corpus] - 16) // 10 + 1
    assert extractor.max_length == RECIPES[corpus].frames == 16 + 10 * (columns - 1)
