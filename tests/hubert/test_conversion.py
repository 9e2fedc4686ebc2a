import pytest
import torch
from tiny_hubert import padded_batch, tiny_config
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertForSequenceClassification,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from mambavox.errors import ConfigError, DataError
from mambavox.hubert import (
    MambaHubertForCTC,
    MambaHubertForPreTraining,
    MambaHubertForSequenceClassification,
    MambaHubertModel,
    from_fairseq,
    from_hubert,
    to_hubert,
)

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
}
NORMS = [
    {"feat_extract_norm": norm, "do_stable_layer_norm": pre, "conv_bias": pre, "num_conv_pos_embeddings": positions}
    for norm, pre, positions in [("group", False, 8), ("layer", True, 8), ("layer", False, 7)]
]


class TestTransformers:
    @pytest.mark.parametrize("norms", NORMS)
    def test_the_twin_of_a_hubert_has_its_outputs_bit_for_bit(self, norms):
        hubert = HubertModel(HubertConfig(**{**SIZES, **norms})).eval()
        twin = from_hubert(hubert)
        waveforms, mask = padded_batch([900, 610, 300], 900)
        for inputs in ({}, {"attention_mask": mask}):
            theirs = hubert(waveforms, output_hidden_states=True, **inputs)
            ours = twin(waveforms, output_hidden_states=True, **inputs)
            valid = hubert._get_feature_vector_attention_mask(44, mask) if inputs else torch.ones(3, 44).bool()
            assert torch.equal(ours.last_hidden_state[valid], theirs.last_hidden_state[valid])
            for got, want in zip(ours.hidden_states, theirs.hidden_states, strict=True):
                assert torch.equal(got[valid], want[valid])

    @pytest.mark.parametrize("norms", NORMS)
    def test_the_hubert_of_a_twin_has_its_outputs_bit_for_bit(self, norms):
        twin = MambaHubertModel(tiny_config("transformer", **norms)).eval()
        hubert = to_hubert(twin)
        assert type(hubert) is HubertModel
        waveforms, mask = padded_batch([900, 610], 900)
        ours, theirs = (model(waveforms, attention_mask=mask).last_hidden_state for model in (twin, hubert))
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1, :29], theirs[1, :29])

    def test_there_and_back_is_the_same_model(self):
        twin = MambaHubertModel(tiny_config("transformer"))
        back = from_hubert(to_hubert(twin))
        for name, tensor in twin.state_dict().items():
            assert torch.equal(tensor, back.state_dict()[name]), name

    def test_gradients_are_those_of_the_hubert_too(self):
        dropouts = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop")
        config = HubertConfig(**SIZES, **dict.fromkeys(dropouts, 0.0), mask_time_prob=0.0)
        hubert = HubertModel(config).train()
        twin = from_hubert(hubert)
        waveforms = torch.randn(2, 500)
        for model in (hubert, twin):
            model(waveforms).last_hidden_state.square().mul(torch.arange(16)).sum().backward()
        for name, parameter in hubert.named_parameters():
            torch.testing.assert_close(twin.get_parameter(name).grad, parameter.grad)

    @pytest.mark.parametrize(
        ("theirs", "ours"),
        [
            (HubertForCTC, MambaHubertForCTC),
            (HubertForSequenceClassification, MambaHubertForSequenceClassification),
        ],
    )
    def test_heads_come_along(self, theirs, ours):
        labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
        hubert = theirs(HubertConfig(**SIZES, vocab_size=9, use_weighted_layer_sum=True, **labels)).eval()
        twin = from_hubert(hubert)
        assert type(twin) is ours
        assert twin.config.id2label == labels["id2label"]
        waveforms, mask = padded_batch([900, 610], 900)
        expected = hubert(waveforms, attention_mask=mask).logits
        torch.testing.assert_close(twin(waveforms, attention_mask=mask).logits[:, :29], expected[:, :29])
        torch.testing.assert_close(to_hubert(twin)(waveforms, attention_mask=mask).logits, expected)

    def test_keeps_dtype_and_mode(self):
        twin = from_hubert(HubertModel(HubertConfig(**SIZES)).bfloat16().train())
        assert twin.dtype == torch.bfloat16
        assert twin.training

    def test_what_does_not_fit_is_named(self):
        with pytest.raises(ConfigError, match="Wav2Vec2Model; expected transformers' HubertModel"):
            from_hubert(Wav2Vec2Model(Wav2Vec2Config(**SIZES)))
        with pytest.raises(ConfigError, match="conv_pos_batch_norm=True"):
            from_hubert(HubertModel(HubertConfig(**SIZES, conv_pos_batch_norm=True)))
        with pytest.raises(ConfigError, match="has mamba layers"):
            to_hubert(MambaHubertModel(tiny_config(["mamba", "transformer"])))
        with pytest.raises(ConfigError, match="has causal positions"):
            to_hubert(MambaHubertModel(tiny_config("transformer", causal_positions=True)))
        with pytest.raises(ConfigError, match="MambaHubertForPreTraining; expected"):
            to_hubert(MambaHubertForPreTraining(tiny_config("transformer")))


FAIRSEQ_OPTIONS = {
    "extractor_mode": "default",
    "conv_feature_layers": "[(8,10,5)] + [(8,3,2)] * 2",
    "final_dim": 8,
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": -1,
    "encoder_attention_heads": 2,
    "mamba_ssm_state_expand": 4,
    "mamba_conv_kernel_size": 4,
    "mamba_block_expand": 3,
    "mamba_head_dim": 8,
    "conv_pos": 8,
    "conv_pos_groups": 2,
    "feature_grad_mult": 0.1,
}


def fairseq_checkpoint(layer_type="transformer", ffn=-1, mode="default", num_clusters=12):
    """Names and shapes of the released code's checkpoints, typed off its modules, with random numbers."""
    shapes = {"mask_emb": (16,), "final_proj.weight": (8, 16), "final_proj.bias": (8,)}
    shapes |= {"label_embs_concat": (num_clusters + 4, 8), "layer_norm.weight": (8,), "layer_norm.bias": (8,)}
    shapes |= {"post_extract_proj.weight": (16, 8), "post_extract_proj.bias": (16,)}
    for index, (channels, kernel) in enumerate([(1, 10), (8, 3), (8, 3)]):
        shapes[f"feature_extractor.conv_layers.{index}.0.weight"] = (8, channels, kernel)
        norm = {"default": "2", "layer_norm": "2.1"}[mode]
        if mode == "layer_norm" or index == 0:
            for part in ("weight", "bias"):
                shapes[f"feature_extractor.conv_layers.{index}.{norm}.{part}"] = (8,)
    shapes |= {"encoder.pos_conv.0.bias": (16,), "encoder.pos_conv.0.weight_g": (1, 1, 8)}
    shapes |= {"encoder.pos_conv.0.weight_v": (16, 8, 8)}
    shapes |= {"encoder.layer_norm.weight": (16,), "encoder.layer_norm.bias": (16,)}
    mamba = {
        "A_log": (48, 4),
        "D": (48,),
        "in_proj.weight": (96, 16),
        "conv1d.weight": (48, 1, 4),
        "conv1d.bias": (48,),
        "x_proj.weight": (9, 48),
        "dt_proj.weight": (48, 1),
        "dt_proj.bias": (48,),
        "out_proj.weight": (16, 48),
    }
    mamba2 = {
        "dt_bias": (6,),
        "A_log": (6,),
        "D": (6,),
        "in_proj.weight": (48 + 48 + 8 + 6, 16),
        "conv1d.weight": (56, 1, 4),
        "conv1d.bias": (56,),
        "norm.weight": (48,),
        "out_proj.weight": (16, 48),
    }
    attention = {f"{name}_proj.weight": (16, 16) for name in "kvq"} | {f"{name}_proj.bias": (16,) for name in "kvq"}
    attention |= {"out_proj.weight": (16, 16), "out_proj.bias": (16,)}
    parts, norm = {
        "transformer": ({"self_attn": attention}, "self_attn_layer_norm"),
        "mambaformer": ({"mamba": mamba}, "mamba_layer_norm"),
        "bimambaformer": ({"mamba": mamba, "mamba_rev": mamba}, "bimamba_layer_norm"),
        "mamba2former": ({"mamba": mamba2}, "mamba_layer_norm"),
    }[layer_type]
    for layer in range(2):
        prefix = f"encoder.layers.{layer}"
        for part, tensors in parts.items():
            shapes |= {f"{prefix}.{part}.{name}": shape for name, shape in tensors.items()}
        shapes |= {f"{prefix}.{norm}.{part}": (16,) for part in ("weight", "bias")}
        if ffn > 0:
            shapes |= {f"{prefix}.fc1.weight": (ffn, 16), f"{prefix}.fc1.bias": (ffn,)}
            shapes |= {f"{prefix}.fc2.weight": (16, ffn), f"{prefix}.fc2.bias": (16,)}
            shapes |= {f"{prefix}.final_layer_norm.{part}": (16,) for part in ("weight", "bias")}
    options = {**FAIRSEQ_OPTIONS, "layer_type": layer_type, "encoder_ffn_embed_dim": ffn, "extractor_mode": mode}
    return {name: torch.randn(shape) for name, shape in shapes.items()}, options


class TestFairseq:
    @pytest.mark.parametrize(
        ("layer_type", "ffn", "encoder"),
        [
            ("mambaformer", -1, "mamba"),
            ("mambaformer", 20, "mamba-mlp"),
            ("bimambaformer", -1, "ext-bimamba"),
            ("bimambaformer", 20, "ext-bimamba-mlp"),
            ("mamba2former", -1, "mamba2"),
            ("transformer", 20, "transformer"),
        ],
    )
    @pytest.mark.parametrize("mode", ["default", "layer_norm"])
    def test_every_tensor_of_a_checkpoint_finds_its_place(self, layer_type, ffn, encoder, mode):
        states, options = fairseq_checkpoint(layer_type, ffn, mode)
        model = from_fairseq(states, options)
        assert model.config.encoder == encoder
        placed = model.state_dict()
        assert len(placed) == len(states)
        left = [tensor for name, tensor in states.items() if name != "label_embs_concat"]
        for name, tensor in placed.items():
            if name != "codebook":
                left = [other for other in left if other.shape != tensor.shape or not torch.equal(other, tensor)]
        assert not left
        assert torch.equal(model.codebook, states["label_embs_concat"][4:])
        assert model(torch.randn(1, 400)).logits.shape == (1, 19, 12)

    def test_names_go_where_they_mean(self):
        states, options = fairseq_checkpoint("bimambaformer", 20)
        model = from_fairseq(states, options).mamba_hubert
        layer = model.encoder.layers[1]
        assert torch.equal(layer.mamba.forward_mamba.A_log, states["encoder.layers.1.mamba.A_log"])
        assert torch.equal(layer.mamba.backward_mamba.A_log, states["encoder.layers.1.mamba_rev.A_log"])
        assert torch.equal(layer.layer_norm.weight, states["encoder.layers.1.bimamba_layer_norm.weight"])
        assert torch.equal(layer.final_layer_norm.bias, states["encoder.layers.1.final_layer_norm.bias"])
        assert torch.equal(layer.feed_forward.output_dense.weight, states["encoder.layers.1.fc2.weight"])
        assert torch.equal(model.masked_spec_embed, states["mask_emb"])
        assert torch.equal(model.feature_projection.layer_norm.weight, states["layer_norm.weight"])
        norm = model.feature_extractor.conv_layers[0].layer_norm
        assert torch.equal(norm.bias, states["feature_extractor.conv_layers.0.2.bias"])
        g, v = (states[f"encoder.pos_conv.0.weight_{part}"] for part in "gv")
        torch.testing.assert_close(model.encoder.pos_conv_embed.conv.weight, g * v / v.norm(dim=(0, 1), keepdim=True))

    def test_options_come_along(self):
        states, options = fairseq_checkpoint("transformer", 20)
        config = from_fairseq(states, {**options, "causal_attn": True, "layer_norm_first": True}).config
        assert config.encoder == "causal-transformer"
        assert not config.causal_positions
        assert config.do_stable_layer_norm
        assert config.feature_grad_mult == 0.1
        assert (config.conv_kernel, config.conv_stride) == ([10, 3, 3], [5, 2, 2])

    def test_what_does_not_fit_is_named(self):
        states, options = fairseq_checkpoint("mambaformer")
        with pytest.raises(DataError, match=r"holds encoder.extra; expected"):
            from_fairseq({**states, "encoder.extra": torch.zeros(1)}, options)
        with pytest.raises(DataError, match="no label_embs_concat"):
            from_fairseq({name: t for name, t in states.items() if name != "label_embs_concat"}, options)
        with pytest.raises(DataError, match=r"encoder.layers.1.mamba.D is missing"):
            from_fairseq({name: t for name, t in states.items() if name != "encoder.layers.1.mamba.D"}, options)
        with pytest.raises(DataError, match=r"A_log is \(48, 4\) where \(48, 8\) is expected"):
            from_fairseq(states, {**options, "mamba_ssm_state_expand": 8})
        with pytest.raises(ConfigError, match="layer_type is 'conformer'"):
            from_fairseq(states, {**options, "layer_type": "conformer"})
        with pytest.raises(ConfigError, match="target_glu is set"):
            from_fairseq(states, {**options, "target_glu": True})
        with pytest.raises(ConfigError, match=r"mamba2former.*encoder_ffn_embed_dim 20.*expected 0"):
            from_fairseq(states, {**options, "layer_type": "mamba2former", "encoder_ffn_embed_dim": 20})
        with pytest.raises(ConfigError, match="conv_feature_layers is 'exit"):
            from_fairseq(states, {**options, "conv_feature_layers": "exit()"})
