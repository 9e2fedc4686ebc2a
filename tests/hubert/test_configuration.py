import json
import re

import pytest
from tiny_hubert import CAUSAL_KINDS, KINDS, tiny_config
from typer.testing import CliRunner

from mambavox.cli import app
from mambavox.cli.info import collect_models
from mambavox.errors import ConfigError
from mambavox.hubert import MambaHubertConfig


@pytest.fixture(scope="module")
def parameters():
    return {(row["size"], row["encoder"]): row["parameters"] for row in collect_models()}


class TestSizes:
    @pytest.mark.parametrize(
        ("encoder", "millions"),
        [
            ("mamba", 78.2),
            ("mamba-mlp", 94.7),
            ("inn-bimamba", 82.9),
            ("inn-bimamba-mlp", 94.7),
            ("transformer", 94.7),
            ("causal-transformer", 94.7),
        ],
    )
    def test_base_models_have_the_published_number_of_parameters(self, parameters, encoder, millions):
        assert parameters["base", encoder] / 1e6 == pytest.approx(millions, rel=0.005)

    def test_small_models_of_the_paper(self, parameters):
        assert parameters["small", "ext-bimamba"] / 1e6 == pytest.approx(23.5, rel=0.005)
        assert parameters["small", "transformer"] / 1e6 == pytest.approx(22.4, rel=0.005)

    def test_nano_models_that_are_compared_have_equal_parameters(self, parameters):
        counts = [parameters["nano", kind] for kind in ("mamba", "ext-bimamba", "transformer", "causal-transformer")]
        assert max(counts) / min(counts) < 1.002
        assert 3e6 < min(counts) < 5e6
        assert all(parameters["nano", kind] == pytest.approx(counts[0], rel=0.025) for kind in KINDS)

    def test_every_field_can_be_overridden(self):
        config = MambaHubertConfig.nano(encoder="ext-bimamba", num_hidden_layers=3, layerdrop=0.0, num_labels=5)
        assert (config.num_hidden_layers, config.layerdrop, config.num_labels) == (3, 0.0, 5)
        assert config.hidden_size == 192

    def test_a_misspelt_field_is_named(self):
        with pytest.raises(ConfigError, match=r"no field 'd_sate'; did you mean 'd_state'"):
            MambaHubertConfig.nano(d_sate=3)

    def test_a_hybrid_has_a_layer_for_each_kind(self):
        config = MambaHubertConfig.nano(encoder=["mamba", "mamba", "transformer"])
        assert config.num_hidden_layers == 3
        assert [kind.mixer for kind in config.layer_kinds] == ["mamba", "mamba", "transformer"]


def test_the_command_line_lists_the_sizes(parameters):
    out = CliRunner().invoke(app, ["info", "--models", "--json"]).output
    rows = {(row["size"], row["encoder"]): row for row in json.loads(out)}
    assert {key: row["parameters"] for key, row in rows.items()} == parameters
    assert rows["base", "mamba"]["causal"]
    assert not rows["base", "transformer"]["causal"]
    table = CliRunner().invoke(app, ["info", "--models"]).output
    assert re.search(r"base .* mamba-mlp .* 12 .* 768 .* yes .* 94\.76 M", table)


class TestCausal:
    @pytest.mark.parametrize("encoder", KINDS)
    def test_is_what_layers_positions_and_front_end_are_together(self, encoder):
        config = tiny_config(encoder)
        assert config.causal == config.causal_positions == (encoder in CAUSAL_KINDS)
        assert not tiny_config(encoder, feat_extract_norm="group").causal
        assert not tiny_config(encoder, causal_positions=False).causal

    def test_a_hybrid_is_causal_where_all_its_layers_are(self):
        assert tiny_config(["mamba", "causal-transformer"]).causal
        assert not tiny_config(["mamba", "transformer"]).causal


def test_every_field_has_a_line_of_documentation():
    section = MambaHubertConfig.__doc__.split("Attributes:")[1].split("Raises:")[0]
    documented = {
        line.split(":")[0].strip() for line in section.splitlines() if line.startswith("        ") and ":" in line
    }
    own = set(MambaHubertConfig.__annotations__)
    assert own <= documented, own - documented


def test_frames():
    config = MambaHubertConfig()
    assert (config.inputs_to_logits_ratio, config.frame_rate, config.receptive_field) == (320, 50.0, 400)
    assert tiny_config().receptive_field == 40


def test_survives_json(tmp_path):
    for encoder in ("mamba", ["mamba", "transformer"]):
        config = tiny_config(encoder, id2label={0: "a", 1: "b", 2: "c"})
        config.save_pretrained(tmp_path)
        assert MambaHubertConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "mambo"}, "'mambo'; expected mamba, mamba-mlp"),
        ({"encoder": ["mamba"], "num_hidden_layers": 2}, "lists 1 layers and num_hidden_layers is 2"),
        ({"conv_dim": (8, 8)}, "have 2, 3 and 3 entries"),
        ({"encoder": "transformer", "num_attention_heads": 3}, "num_attention_heads is 3; expected a divisor"),
        ({"encoder": "mamba2", "headdim": 5}, "headdim is 5; expected a divisor"),
        ({"num_conv_pos_embedding_groups": 3}, "num_conv_pos_embedding_groups is 3"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm is 'batch'"),
        ({"ctc_loss_reduction": "none"}, "ctc_loss_reduction is 'none'"),
        ({"hidden_act": "gleu"}, "hidden_act is 'gleu'; expected one of .*gelu"),
        ({"num_clusters": 0}, "num_clusters is 0"),
        ({"mask_prob": 1.5}, "mask_prob is 1.5"),
        ({"unmasked_weight": -0.5}, "unmasked_weight is -0.5; expected 0 or more"),
        ({"logit_temp": 0.0}, "logit_temp is 0.0"),
    ],
)
def test_impossible_values(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(**options)
