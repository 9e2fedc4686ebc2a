import math
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from tiny_hubert import HYBRID, KINDS, padded_batch, tiny_config
from transformers import Trainer, TrainingArguments

from mambavox.errors import ConfigError, DataError
from mambavox.hubert import (
    MambaHubertConfig,
    MambaHubertForCTC,
    MambaHubertForPreTraining,
    MambaHubertForSequenceClassification,
    MambaHubertModel,
)

FRAMES = 29  # of 600 samples


class TestModel:
    def test_hidden_states_are_those_of_all_layers(self):
        model = MambaHubertModel(tiny_config(HYBRID)).eval()
        output = model(torch.randn(2, 600), output_hidden_states=True)
        assert len(output.hidden_states) == 5
        assert {tuple(state.shape) for state in output.hidden_states} == {(2, FRAMES, 16)}
        assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
        assert output.extract_features.shape == (2, FRAMES, 8)
        for before, after, layer in zip(
            output.hidden_states, output.hidden_states[1:], model.encoder.layers, strict=False
        ):
            torch.testing.assert_close(layer(before), after)
        assert model(torch.randn(2, 600)).hidden_states is None
        model.config.output_hidden_states = True
        assert len(model(torch.randn(2, 600)).hidden_states) == 5
        assert type(model(torch.randn(2, 600), return_dict=False)) is tuple

    def test_attention_weights_are_refused(self):
        model = MambaHubertForCTC(tiny_config(HYBRID)).eval()
        with pytest.raises(ConfigError, match="output_attentions is set"):
            model(torch.randn(1, 600), output_attentions=True)
        assert model(torch.randn(1, 600), output_attentions=False).logits.isfinite().all()

    def test_the_head_alone_is_trained_and_takes_another_vocabulary(self):
        model = MambaHubertForCTC(tiny_config(HYBRID)).eval()
        samples, size = torch.randn(1, 600), model.config.vocab_size
        before = model(samples).logits
        head = model.resize_token_embeddings(size + 3, mean_resizing=False)
        assert head is model.lm_head and model.config.vocab_size == size + 3 and head.bias.shape == (size + 3,)
        assert torch.equal(model(samples).logits[..., :size], before)
        assert model.resize_token_embeddings(size - 1, pad_to_multiple_of=2).out_features % 2 == 0
        model.freeze_base_model()
        assert {name for name, p in model.named_parameters() if p.requires_grad} == {"lm_head.weight", "lm_head.bias"}

    def test_layers_are_what_their_equations_say(self):
        frames, lengths = torch.randn(2, 9, 16), torch.tensor([9, 4])
        post = MambaHubertModel(tiny_config("mamba-mlp")).eval().encoder.layers[0]
        pre = MambaHubertModel(tiny_config("mamba-mlp", do_stable_layer_norm=True)).eval().encoder.layers[0]
        middle = post.layer_norm(frames + post.mamba(frames, lengths))
        expected = post.final_layer_norm(middle + post.feed_forward(middle))
        torch.testing.assert_close(post(frames, lengths), expected)
        middle = frames + pre.mamba(pre.layer_norm(frames), lengths)
        torch.testing.assert_close(pre(frames, lengths), middle + pre.feed_forward(pre.final_layer_norm(middle)))

    @pytest.mark.parametrize("encoder", KINDS)
    def test_layers_have_the_sublayers_of_their_kind(self, encoder):
        layer = MambaHubertModel(tiny_config(encoder)).encoder.layers[0]
        assert hasattr(layer, "attention") == ("transformer" in encoder)
        assert hasattr(layer, "mamba") == ("mamba" in encoder)
        assert hasattr(layer, "feed_forward") == ("transformer" in encoder or encoder.endswith("-mlp"))

    def test_masked_frames_hide_what_was_there(self):
        model = MambaHubertModel(tiny_config("transformer", num_conv_pos_embeddings=1)).eval()
        hidden = torch.zeros(1, FRAMES, dtype=torch.bool)
        hidden[0, 10:15] = True
        waveform = torch.randn(1, 600, requires_grad=True)
        output = model(waveform, mask_time_indices=hidden).last_hidden_state
        (gradient,) = torch.autograd.grad((output * torch.randn_like(output)).sum(), waveform)
        # Frames 10 to 14 alone see samples 220 to 299: frame 9 ends at 219, frame 15 begins at 300.
        assert not gradient[0, 220:300].any()
        assert gradient[0, :220].all()
        assert not torch.equal(output, model(waveform).last_hidden_state)

    def test_layerdrop_leaves_layers_out_in_training_only(self):
        model = MambaHubertModel(tiny_config(HYBRID, layerdrop=1.0))
        states = model.train()(torch.randn(1, 600), output_hidden_states=True).hidden_states
        assert all(torch.equal(state, states[0]) for state in states)
        states = model.eval()(torch.randn(1, 600), output_hidden_states=True).hidden_states
        assert not any(torch.equal(state, states[0]) for state in states[1:])
        model.config.layerdrop = 0.5
        kept = 0
        for _ in range(50):
            states = model.train()(torch.randn(1, 60), output_hidden_states=True).hidden_states
            kept += sum(not torch.equal(a, b) for a, b in pairwise(states))
        assert 70 < kept < 130

    @pytest.mark.parametrize(
        "option", ["hidden_dropout", "feat_proj_dropout", "attention_dropout", "activation_dropout"]
    )
    def test_each_dropout_acts_in_training_only(self, option):
        model = MambaHubertModel(tiny_config("transformer", **{option: 0.5}))
        waveform = torch.randn(1, 600)
        assert not torch.equal(model.train()(waveform)[0], model(waveform)[0])
        assert torch.equal(model.eval()(waveform)[0], model(waveform)[0])

    def test_the_gradient_of_the_features_is_scaled_and_nothing_else(self):
        config = tiny_config("mamba", feature_grad_mult=1.0)
        whole = MambaHubertModel(config)
        scaled = MambaHubertModel(tiny_config("mamba", feature_grad_mult=0.25))
        scaled.load_state_dict(whole.state_dict())
        waveform = torch.randn(2, 600)
        for model in (whole, scaled):
            output = model.train()(waveform).last_hidden_state
            (output * torch.arange(16)).sum().backward()
        for name, parameter in whole.named_parameters():
            if parameter.grad is not None:
                factor = 0.25 if name.startswith("feature_extractor.") else 1.0
                torch.testing.assert_close(scaled.get_parameter(name).grad, factor * parameter.grad)

    def test_new_parameters_have_the_published_spread(self):
        model = MambaHubertModel(MambaHubertConfig.nano("transformer", num_hidden_layers=1))
        for layer in model.feature_extractor.conv_layers:
            channels, kernel = layer.conv.weight.shape[1:]
            assert layer.conv.weight.std().item() == pytest.approx(math.sqrt(2 / (channels * kernel)), rel=0.1)
        positions = model.encoder.pos_conv_embed.conv.weight
        assert positions.std().item() == pytest.approx(math.sqrt(4 / (128 * 192)), rel=0.02)
        assert model.encoder.layers[0].attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert 0 < model.masked_spec_embed.min() < 0.1 < 0.9 < model.masked_spec_embed.max() < 1

    def test_wrong_inputs_are_named(self):
        model = MambaHubertModel(tiny_config())
        with pytest.raises(DataError, match="39 samples; expected at least 40"):
            model(torch.zeros(1, 39))
        with pytest.raises(ConfigError, match=r"\(600,\); expected \(batch, samples\)"):
            model(torch.zeros(600))
        with pytest.raises(ConfigError, match="attention_mask has shape"):
            model(torch.zeros(1, 600), attention_mask=torch.ones(1, 500))
        with pytest.raises(ConfigError, match=r"\(1, 28\); expected \(batch, time\) = \(1, 29\)"):
            model(torch.zeros(1, 600), mask_time_indices=torch.ones(1, 28))


class TestTechnique:
    @staticmethod
    def note(passes, *_):
        passes.append(1)

    @pytest.mark.parametrize("encoder", [*KINDS, HYBRID])
    @pytest.mark.parametrize("norm", ["layer", "group"])
    def test_gradients_reach_every_parameter(self, encoder, norm):
        model = MambaHubertForPreTraining(tiny_config(encoder, feat_extract_norm=norm, conv_bias=norm == "layer"))
        waveforms, mask = padded_batch([600, 400], 600)
        model(waveforms, attention_mask=mask, labels=torch.randint(12, (2, FRAMES))).loss.backward()
        # A bias on all keys alike changes no attention weight.
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert [name for name in without if not name.endswith("k_proj.bias")] == []

    @pytest.mark.parametrize("encoder", ["mamba-mlp", "inn-bimamba", "mamba2", "transformer"])
    def test_gradient_checkpointing_changes_no_gradient(self, encoder):
        model = MambaHubertForPreTraining(tiny_config(encoder)).train()
        waveforms, mask = padded_batch([600, 400], 600)
        hidden = torch.rand(2, FRAMES) < 0.5
        labels = torch.randint(12, (2, FRAMES))
        gradients = []
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable()
            model.zero_grad()
            passes = []
            layer = model.mamba_hubert.encoder.layers[0]
            hook = layer.layer_norm.register_forward_pre_hook(partial(self.note, passes))
            model(waveforms, attention_mask=mask, labels=labels, mask_time_indices=hidden).loss.backward()
            hook.remove()
            assert len(passes) == 1 + checkpointing
            gradients.append([p.grad.clone() for p in model.parameters()])
        for got, want in zip(*gradients, strict=True):
            torch.testing.assert_close(got, want)

    @pytest.mark.parametrize("encoder", [("mamba", "inn-bimamba"), ("causal-transformer", "transformer")])
    def test_compiles_to_the_same_outputs_and_gradients(self, encoder):
        torch._dynamo.reset()
        model = MambaHubertModel(tiny_config(encoder)).train()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        waveforms, mask = padded_batch([600, 400], 600)
        results = []
        for run in (model, compiled):
            output = run(waveforms, attention_mask=mask).last_hidden_state
            loss = (output[0] * torch.arange(16)).sum()
            results.append([output[0], output[1, :19], *torch.autograd.grad(loss, list(model.encoder.parameters()))])
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("encoder", [*KINDS])
    def test_runs_in_bfloat16_and_under_autocast(self, encoder):
        model = MambaHubertForPreTraining(tiny_config(encoder)).eval()
        waveforms, mask = padded_batch([600, 400], 600)
        inputs = {"input_values": waveforms, "attention_mask": mask, "labels": torch.randint(12, (2, FRAMES))}
        inputs["mask_time_indices"] = torch.rand(2, FRAMES) < 0.5
        expected = model(**inputs).loss
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(**inputs).loss, expected, rtol=0.03, atol=0.03)
        output = model.bfloat16()(**inputs)
        assert output.logits.dtype == torch.float32
        torch.testing.assert_close(output.loss, expected, rtol=0.03, atol=0.03)
        output.loss.backward()


class TestPreTraining:
    def test_the_loss_is_that_of_masked_labelled_frames(self):
        model = MambaHubertForPreTraining(tiny_config("mamba", feature_penalty=3.0, logit_temp=0.2)).eval()
        waveforms, mask = padded_batch([600, 400], 600)
        labels = torch.randint(12, (2, FRAMES))
        hidden = torch.rand(2, FRAMES) < 0.5
        hidden[1, 19:] = False
        labels[0, :5] = -100
        output = model(waveforms, attention_mask=mask, labels=labels, mask_time_indices=hidden)
        encoded = model.mamba_hubert(waveforms, attention_mask=mask, mask_time_indices=hidden)
        projected = model.final_proj(encoded.last_hidden_state)
        cosines = F.cosine_similarity(projected[:, :, None], model.codebook, dim=-1)
        torch.testing.assert_close(output.logits, cosines / 0.2)
        counted = hidden & (labels != -100)
        prediction = F.cross_entropy(output.logits[counted], labels[counted])
        penalty = torch.cat([encoded.extract_features[0], encoded.extract_features[1, :19]]).square().mean()
        torch.testing.assert_close(output.prediction_loss, prediction)
        torch.testing.assert_close(output.feature_penalty, penalty)
        torch.testing.assert_close(output.loss, prediction + 3 * penalty)

    @pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
    def test_visible_frames_count_with_their_weight(self, weight):
        config = tiny_config("mamba", feature_penalty=3.0, unmasked_weight=weight)
        model = MambaHubertForPreTraining(config).eval()
        waveforms, mask = padded_batch([600, 400], 600)
        labels = torch.randint(12, (2, FRAMES))
        hidden = torch.rand(2, FRAMES) < 0.5
        hidden[1, 19:] = False
        labels[0, :5] = labels[1, 19:] = -100
        given = {"attention_mask": mask, "labels": labels, "mask_time_indices": hidden}
        output = model(waveforms, **given)
        total = items = 0.0
        of_hidden = []
        for row in range(2):
            for frame in range(FRAMES):
                if labels[row, frame] == -100 or not (hidden[row, frame] or weight):
                    continue
                error = -output.logits[row, frame].log_softmax(-1)[labels[row, frame]]
                total += error * (1.0 if hidden[row, frame] else weight)
                items += 1
                if hidden[row, frame]:
                    of_hidden.append(error)
        penalty = 3 * output.feature_penalty
        torch.testing.assert_close(output.loss, total / items + penalty)
        torch.testing.assert_close(output.prediction_loss, torch.stack(of_hidden).mean())
        # Of a step with more frames than this batch's.
        part = model(waveforms, **given, num_items_in_batch=torch.tensor(100.0))
        torch.testing.assert_close(part.loss, (total + items * penalty) / 100)
        torch.testing.assert_close(part.prediction_loss, output.prediction_loss)

    @pytest.mark.parametrize("weight", [0.0, 0.5])
    def test_visible_frames_have_a_gradient_where_they_count(self, weight):
        model = MambaHubertForPreTraining(tiny_config("transformer", unmasked_weight=weight)).eval()
        hidden = torch.zeros(1, FRAMES, dtype=torch.bool)
        hidden[0, 10:15] = True
        output = model(torch.randn(1, 600), labels=torch.randint(12, (1, FRAMES)), mask_time_indices=hidden)
        reached = torch.autograd.grad(output.loss, output.logits)[0].abs().sum(dim=-1)[0] > 0
        assert reached[10:15].all()
        assert reached[~hidden[0]].all() == (weight > 0) == reached[~hidden[0]].any()

    @pytest.mark.parametrize("weight", [0.0, 0.5])
    def test_batches_of_a_step_add_up_to_the_loss_of_their_union(self, weight):
        config = tiny_config("transformer", feature_penalty=0.0, unmasked_weight=weight)
        model = MambaHubertForPreTraining(config).eval()
        waveforms, hidden = torch.randn(3, 600), torch.rand(3, FRAMES) < torch.tensor([[0.2], [0.5], [0.9]])
        labels = torch.randint(12, (3, FRAMES))
        labels[0, :9] = -100
        labels = labels if weight else labels.masked_fill(~hidden, -100)
        items = (labels != -100).sum()
        whole = model(waveforms, labels=labels, mask_time_indices=hidden).loss
        parts = [
            model(waveforms[rows], labels=labels[rows], mask_time_indices=hidden[rows], num_items_in_batch=items).loss
            for rows in (slice(0, 1), slice(1, 3))
        ]
        torch.testing.assert_close(sum(parts), whole)

    @pytest.mark.parametrize("weight", [0.0, 0.5])
    def test_the_trainer_gives_an_accumulated_step_the_gradient_of_the_whole(self, tmp_path, weight):
        config = tiny_config("mamba", feature_penalty=0.0, unmasked_weight=weight)
        start = MambaHubertForPreTraining(config).state_dict()
        hidden = torch.rand(4, FRAMES) < torch.tensor([[0.2], [0.9], [0.5], [0.6]])
        labels = torch.randint(12, (4, FRAMES))
        labels[0, :9] = -100
        labels = labels if weight else labels.masked_fill(~hidden, -100)
        rows = [
            {"input_values": waveform, "labels": label, "mask_time_indices": mask}
            for waveform, label, mask in zip(torch.randn(4, 600), labels, hidden, strict=True)
        ]
        stepped = []
        for batch_size in (4, 1):
            model = MambaHubertForPreTraining(config)
            model.load_state_dict(start)
            arguments = TrainingArguments(
                tmp_path,
                max_steps=1,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=4 // batch_size,
                optim="sgd",
                learning_rate=1.0,
                max_grad_norm=0.0,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
            )
            Trainer(model, arguments, train_dataset=rows).train()
            stepped.append(model.state_dict())
        for name, tensor in stepped[0].items():
            torch.testing.assert_close(stepped[1][name], tensor, rtol=1e-4, atol=1e-5)
        assert not torch.equal(stepped[0]["codebook"], start["codebook"])

    def test_masks_are_sampled_for_labels_only_and_inside_lengths(self):
        model = MambaHubertForPreTraining(tiny_config("mamba")).eval()
        waveforms, mask = padded_batch([600, 400], 600)
        output = model(waveforms, attention_mask=mask, labels=torch.zeros(2, FRAMES, dtype=torch.int64))
        assert output.mask_time_indices[0].sum() >= 10
        assert not output.mask_time_indices[1, 19:].any()
        bare = model(waveforms, attention_mask=mask)
        assert bare.mask_time_indices is None
        assert bare.loss is None
        assert torch.equal(bare.logits, model(waveforms, attention_mask=mask).logits)

    def test_labels_of_another_rate_are_named(self):
        model = MambaHubertForPreTraining(tiny_config())
        with pytest.raises(ConfigError, match=r"labels has shape \(1, 58\); expected \(batch, time\) = \(1, 29\)"):
            model(torch.zeros(1, 600), labels=torch.zeros(1, 58, dtype=torch.int64))

    @pytest.mark.parametrize(("weight", "updates"), [(0.0, 240), (1.0, 120)])
    def test_learns_which_unit_lies_behind_the_mask(self, weight, updates):
        # Every recording is one of four tones: visible frames tell the unit of the hidden ones.
        config = tiny_config(
            "ext-bimamba", hidden_size=32, num_clusters=4, feature_grad_mult=1.0, unmasked_weight=weight
        )
        model = MambaHubertForPreTraining(config).train()
        units = torch.arange(4).repeat(4)
        seconds = torch.arange(600) / 16_000
        waveforms = torch.sin(2 * math.pi * (400.0 * 2**units)[:, None] * seconds + 6 * torch.rand(16, 1))
        labels = units[:, None].expand(-1, FRAMES)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(updates):
            output = model(waveforms, labels=labels)
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            losses.append(output.prediction_loss.item())
        assert losses[0] > 1.0
        assert losses[-1] < 0.3


class TestCTC:
    def test_the_loss_is_that_of_each_row_alone(self):
        model = MambaHubertForCTC(tiny_config("mamba", vocab_size=6)).eval()
        waveforms, mask = padded_batch([600, 400], 600)
        labels = torch.tensor([[1, 2, 2, 5], [3, 4, -100, -100]])
        together = model(waveforms, attention_mask=mask, labels=labels).loss
        first = model(waveforms[:1], labels=labels[:1]).loss
        second = model(waveforms[1:, :400], labels=labels[1:, :2]).loss
        torch.testing.assert_close(together, (first + second) / 2)
        model.config.ctc_loss_reduction = "sum"
        total = model(waveforms, attention_mask=mask, labels=labels).loss
        torch.testing.assert_close(total, first * 4 + second * 2)

    def test_learns_to_write_tones_down(self):
        model = MambaHubertForCTC(tiny_config("mamba", vocab_size=4, hidden_size=64, feature_grad_mult=1.0)).train()
        texts = torch.tensor([[1], [2], [3]])
        seconds = torch.arange(300) / 16_000
        tones = torch.sin(2 * math.pi * (300.0 * 2 ** texts.float())[:, :, None] * seconds)
        waveforms = tones.flatten(1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(100):
            loss = model(waveforms, labels=texts).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        # A model that does not listen stays at 2.0.
        assert losses[0] > 10
        assert losses[-1] < 1.5

    def test_a_text_too_long_for_its_recording_can_be_passed_over(self):
        long = torch.ones(1, 40, dtype=torch.int64)
        model = MambaHubertForCTC(tiny_config("mamba", ctc_zero_infinity=True))
        assert model(torch.randn(1, 600), labels=long).loss == 0
        model.config.ctc_zero_infinity = False
        assert model(torch.randn(1, 600), labels=long).loss == torch.inf

    def test_labels_outside_the_vocabulary_are_named(self):
        model = MambaHubertForCTC(tiny_config("mamba", vocab_size=6))
        with pytest.raises(ConfigError, match="labels go up to 6; expected below vocab_size=6"):
            model(torch.randn(1, 600), labels=torch.tensor([[6]]))


class TestClassification:
    @pytest.mark.parametrize("weighted", [False, True])
    def test_pools_valid_frames_only(self, weighted):
        config = tiny_config(HYBRID, use_weighted_layer_sum=weighted, num_labels=3)
        model = MambaHubertForSequenceClassification(config).eval()
        waveforms, mask = padded_batch([600, 400], 600, padding=9.0)
        labels = torch.tensor([2, 0])
        output = model(waveforms, attention_mask=mask, labels=labels)
        alone = torch.cat([model(waveforms[:1]).logits, model(waveforms[1:, :400]).logits])
        torch.testing.assert_close(output.logits, alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.loss, F.cross_entropy(alone, labels))
        assert output.hidden_states is None
        assert len(model(waveforms, output_hidden_states=True).hidden_states) == 5

    def test_the_weighted_sum_weighs_every_layer(self):
        model = MambaHubertForSequenceClassification(tiny_config(HYBRID, use_weighted_layer_sum=True)).eval()
        waveform = torch.randn(1, 600)
        states = model.mamba_hubert(waveform, output_hidden_states=True).hidden_states
        expected = model.classifier(model.projector(torch.stack(states).mean(dim=0)).mean(dim=1))
        torch.testing.assert_close(model(waveform).logits, expected)
        with torch.no_grad():
            model.layer_weights.copy_(torch.tensor([0.0, 0.0, 100.0, 0.0, 0.0]))
        expected = model.classifier(model.projector(states[2]).mean(dim=1))
        torch.testing.assert_close(model(waveform).logits, expected)

    def test_a_frozen_front_end_gets_no_gradient(self):
        model = MambaHubertForSequenceClassification(tiny_config("mamba"))
        model.freeze_feature_encoder()
        model(torch.randn(2, 600), labels=torch.tensor([0, 1])).loss.backward()
        assert all(p.grad is None for p in model.mamba_hubert.feature_extractor.parameters())
        assert all(p.grad is not None for p in model.mamba_hubert.encoder.parameters())
