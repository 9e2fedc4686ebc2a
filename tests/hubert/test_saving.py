import ast
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_hubert import HYBRID, tiny_config
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForPreTraining,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

from mambavox.hubert import (
    MambaHubertConfig,
    MambaHubertForCTC,
    MambaHubertForPreTraining,
    MambaHubertForSequenceClassification,
    MambaHubertModel,
    plain_ops,
)
from mambavox.hubert.portable import portable_code
from mambavox.nn import Mamba, mamba
from mambavox.nn import block as mamba_block
from mambavox.ops import causal_conv1d, selective_scan, ssd_scan

ALL_MIXERS = ("mamba", "ext-bimamba-mlp", "inn-bimamba", "mamba2", "transformer", "causal-transformer")


class TestFolders:
    @pytest.mark.parametrize(
        ("auto", "kind"),
        [
            (AutoModel, MambaHubertModel),
            (AutoModelForPreTraining, MambaHubertForPreTraining),
            (AutoModelForCTC, MambaHubertForCTC),
            (AutoModelForAudioClassification, MambaHubertForSequenceClassification),
        ],
    )
    def test_a_saved_model_comes_back_through_its_auto_class(self, auto, kind, tmp_path):
        model = kind(tiny_config(ALL_MIXERS, use_weighted_layer_sum=True)).eval()
        model.save_pretrained(tmp_path)
        assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1  # weights are as readable as the rest
        assert isinstance(AutoConfig.from_pretrained(tmp_path), MambaHubertConfig)
        for options in ({}, {"trust_remote_code": True}):
            back = auto.from_pretrained(tmp_path, **options)
            assert type(back) is kind
            waveform = torch.randn(1, 400)
            torch.testing.assert_close(back(waveform)[0], model(waveform)[0], rtol=0, atol=0)

    def test_a_head_is_added_to_a_bare_encoder_and_the_encoder_stays(self, tmp_path):
        model = MambaHubertModel(tiny_config(ALL_MIXERS))
        model.save_pretrained(tmp_path)
        back = MambaHubertForCTC.from_pretrained(tmp_path, vocab_size=7)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, back.mamba_hubert.state_dict()[name]), name
        assert back.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.3)

    def test_a_tensor_that_a_file_lacks_is_made_as_in_a_new_model(self, tmp_path):
        config = tiny_config("mamba")
        model = MambaHubertModel(config)
        states = model.state_dict()
        del states["encoder.layers.0.mamba.dt_proj.bias"]
        model.save_pretrained(tmp_path, state_dict=states)
        back = MambaHubertModel.from_pretrained(tmp_path)
        step = torch.nn.functional.softplus(back.encoder.layers[0].mamba.dt_proj.bias)
        assert 0.001 - 1e-6 < step.min() < step.max() < 0.1 + 1e-6
        assert torch.equal(back.encoder.layers[0].mamba.A_log, model.encoder.layers[0].mamba.A_log)

    def test_half_precision_keeps_the_rates_of_the_states(self, tmp_path):
        model = MambaHubertModel(tiny_config(["mamba", "mamba2"])).eval()
        model.save_pretrained(tmp_path)
        back = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        kept = {name for name, parameter in back.named_parameters() if parameter.dtype == torch.float32}
        parts = {"0": ("A_log", "D"), "1": ("A_log", "D", "dt_bias")}
        assert kept == {f"encoder.layers.{layer}.mamba.{name}" for layer, names in parts.items() for name in names}
        waveform = torch.randn(1, 400)
        output = back(waveform).last_hidden_state
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), model(waveform).last_hidden_state, rtol=0.05, atol=0.05)


def test_a_new_mamba_layer_is_initialised_as_its_block():
    layer = MambaHubertModel(MambaHubertConfig.nano("mamba", num_hidden_layers=1)).encoder.layers[0]
    torch.manual_seed(0)
    block = Mamba(192, 16, 4, 2)
    for name, parameter in block.named_parameters():
        if parameter.dim() == 2 and name != "A_log":
            ours, expected = layer.mamba.get_parameter(name).std().item(), parameter.std().item()
            assert ours == pytest.approx(expected, rel=0.1), name
    assert torch.equal(layer.mamba.A_log, block.A_log)
    step = torch.nn.functional.softplus(layer.mamba.dt_proj.bias)
    assert step.log().std() > 1.0  # log-uniform over two decades: 1.33


class TestPipelines:
    @pytest.fixture(autouse=True)
    def _errors_are_failures(self, caplog):
        logger = logging.getLogger("transformers")
        logger.addHandler(caplog.handler)
        yield
        logger.removeHandler(caplog.handler)
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

    def test_speech_recognition(self, tmp_path):
        vocabulary = {token: index for index, token in enumerate(["<pad>", "<unk>", "|", *"abcde"])}
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
        tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), bos_token=None, eos_token=None)
        MambaHubertForCTC(tiny_config("mamba", vocab_size=8)).save_pretrained(tmp_path)
        Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        recognise = pipeline("automatic-speech-recognition", model=str(tmp_path))
        waveform = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
        answer = recognise(waveform)
        tokens = recognise.model(torch.from_numpy(waveform)[None]).logits.argmax(dim=-1)[0]
        assert answer["text"] == tokenizer.decode(tokens)
        assert answer["text"]
        assert recognise([waveform, waveform[:5000]], batch_size=2)[0] == answer
        assert recognise(waveform, chunk_length_s=0.5)["text"]

    def test_audio_classification(self, tmp_path):
        config = tiny_config("ext-bimamba", id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1})
        MambaHubertForSequenceClassification(config).save_pretrained(tmp_path)
        Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(tmp_path)
        classify = pipeline("audio-classification", model=str(tmp_path))
        waveform = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
        expected = classify.model(torch.from_numpy(waveform)[None]).logits.softmax(dim=-1)[0]
        scores = {row["label"]: row["score"] for row in classify(waveform)}
        assert scores == pytest.approx({"yes": expected[0].item(), "no": expected[1].item()})

    def test_a_folder_without_preprocessor_class_gets_the_feature_extractor(self, tmp_path):
        tiny_config().save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
        assert isinstance(AutoFeatureExtractor.from_pretrained(tmp_path), Wav2Vec2FeatureExtractor)


class TestWithoutThePackage:
    def test_a_saved_model_loads_computes_and_saves_again(self, tmp_path):
        model = MambaHubertForCTC(tiny_config(ALL_MIXERS)).eval()
        model.save_pretrained(tmp_path / "saved")
        waveforms, mask = torch.randn(2, 400), torch.ones(2, 400, dtype=torch.int64)
        mask[1, 250:] = 0
        torch.save([waveforms, mask, model(waveforms, attention_mask=mask).logits.detach()], tmp_path / "expected.pt")
        script = f"""
import sys
sys.modules["mambavox"] = None  # every import of it fails
import torch
from transformers import AutoModel, AutoModelForCTC
waveforms, mask, expected = torch.load({str(tmp_path / "expected.pt")!r})
model = AutoModelForCTC.from_pretrained({str(tmp_path / "saved")!r}, trust_remote_code=True)
logits = model(waveforms, attention_mask=mask).logits
torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
model.train()(waveforms, attention_mask=mask, labels=torch.tensor([[3, 4], [5, -100]])).loss.backward()
assert all(p.grad is not None for n, p in model.named_parameters() if "masked_spec_embed" not in n)
model.eval().save_pretrained({str(tmp_path / "again")!r})
model = AutoModelForCTC.from_pretrained({str(tmp_path / "again")!r}, trust_remote_code=True)
torch.testing.assert_close(model(waveforms, attention_mask=mask).logits, expected, rtol=1e-5, atol=1e-5)
assert type(AutoModel.from_config(model.config, trust_remote_code=True)).__name__ == "MambaHubertModel"
model.config.encoder, model.config.num_hidden_layers = ["mamba", "mamba2", "causal-transformer"], 3
model.config.causal_positions = True
model = AutoModelForCTC.from_config(model.config, trust_remote_code=True).eval()
with torch.no_grad():
    first, state = model.stream(waveforms[:, :130], model.init_streaming_state(2))
    state.save({str(tmp_path / "state")!r})
    second, _ = model.stream(waveforms[:, 130:], type(state).load({str(tmp_path / "state")!r}))
    streamed = torch.cat([first.logits, second.logits], dim=1)
    torch.testing.assert_close(streamed, model(waveforms).logits, rtol=1e-5, atol=1e-5)
"""
        environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        back = MambaHubertForCTC.from_pretrained(tmp_path / "again")
        torch.testing.assert_close(back(waveforms).logits, model(waveforms).logits, rtol=0, atol=0)

    def test_the_file_needs_only_torch_and_transformers_and_defines_every_name_once(self):
        tree = ast.parse(portable_code())
        imported = {
            (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        # transformers itself needs safetensors.
        assert imported - set(sys.stdlib_module_names) == {"torch", "transformers", "safetensors"}
        defined = [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and not any(getattr(decorator, "id", "") == "overload" for decorator in node.decorator_list)
        ]
        assert [name for name, count in Counter(defined).items() if count > 1] == []

    def test_where_mambavox_is_installed_it_runs_on_its_kernels(self, tmp_path):
        (tmp_path / "saved_code.py").write_text(portable_code())
        spec = importlib.util.spec_from_file_location("saved_code", tmp_path / "saved_code.py")
        code = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(code)
        assert (code.selective_scan, code.causal_conv1d, code.ssd_scan) == (selective_scan, causal_conv1d, ssd_scan)

    def test_its_plain_operations_are_those_of_the_package(self, monkeypatch):
        layer = Mamba(12, 4)
        frames, lengths = torch.randn(2, 20, 12), torch.tensor([20, 7])
        expected = [layer(frames, lengths, return_state=True, reverse=reverse) for reverse in (False, True)]
        monkeypatch.setattr(mamba, "selective_scan", plain_ops.selective_scan)
        monkeypatch.setattr(mamba_block, "causal_conv1d", plain_ops.causal_conv1d)
        for reverse, (output, state) in zip((False, True), expected, strict=True):
            plain, plain_state = layer(frames, lengths, return_state=True, reverse=reverse)
            torch.testing.assert_close(plain, output)
            torch.testing.assert_close(plain_state.ssm, state.ssm)
            torch.testing.assert_close(plain_state.conv, state.conv)
        x, weight = torch.randn(2, 9, 6), torch.randn(6, 3)
        torch.testing.assert_close(plain_ops.causal_conv1d(x, weight), causal_conv1d(x, weight))
        dt, A, B, C = torch.rand(2, 9, 6), -torch.rand(6, 4), torch.randn(2, 9, 4), torch.randn(2, 9, 4)
        torch.testing.assert_close(plain_ops.selective_scan(x, dt, A, B, C), selective_scan(x, dt, A, B, C))

    def test_every_source_stays_as_it_is(self):
        code = portable_code()
        for name in ("nn/mamba.py", "hubert/layers.py"):
            source = (Path(mamba.__file__).parents[1] / name).read_text()
            body = source[source.index("\nclass ") :].strip()
            assert body in code


def test_a_hybrid_is_saved_with_its_layers(tmp_path):
    MambaHubertModel(tiny_config(HYBRID)).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).encoder == list(HYBRID)
