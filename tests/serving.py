"""A server in a thread, and clients that talk to it."""

import contextlib
import json
import threading
import time

import numpy as np
import torch
from tiny_hubert import tiny_config
from transformers import Wav2Vec2FeatureExtractor
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from mambavox.asr.live import LiveRecognizer
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.asr.tokenizer import train_tokenizer
from mambavox.hubert import MambaHubertForCTC
from mambavox.web.limits import Limits
from mambavox.web.server import Access, address_of, bind, make_application, make_server

RATE = 16_000


def new_recognizer():
    """Random, with frames of 20 ms that differ in their letters."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["ab c"])
    front = {"conv_dim": (8, 8, 8), "conv_kernel": (10, 8, 8), "conv_stride": (5, 8, 8)}
    model = MambaHubertForCTC(tiny_config(vocab_size=len(tokenizer), pad_token_id=0, **front))
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return SpeechRecognizer(model, Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True), tokenizer)


class Served:
    def __init__(self, live, address, server):
        self.live, self.address, self.server = live, address, server

    def connect(self, **options):
        return connect(self.address.replace("http", "ws") + "/listen", open_timeout=10, **options)

    @contextlib.contextmanager
    def begin(self, token=None, **options):
        """A client that has been let in."""
        with self.connect(**options) as client:
            client.send(json.dumps({"type": "start", "sampling_rate": RATE, "token": token}))
            assert json.loads(client.recv(10))["type"] == "ready"
            yield client

    def refused(self, *messages, seconds=20):
        """Reason and code with which a client is refused who says all this."""
        with self.connect() as client:
            with contextlib.suppress(ConnectionClosed):
                for message in messages:
                    client.send(message)
            events, code = events_of(client, seconds)
        assert events[-1]["type"] == "error"
        assert events[-1]["message"]
        return events[-1]["reason"], code

    def wait_for_streams(self, count, seconds=10):
        wait_until(lambda: self.live.streams == count, seconds)


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@contextlib.contextmanager
def serving(limits=None, access=None, live=None):
    limits, live = limits or Limits(), live or LiveRecognizer(new_recognizer())
    server = make_server(make_application(live, limits, access or Access(), name="tiny"), limits)
    with bind("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield Served(live, address_of(listening), server)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def pcm_of(waveform):
    return (np.clip(waveform, -1, 1) * 32767).round().astype("<i2").tobytes()


def waveform_of(pcm):
    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32768


def noise(seconds, seed=0):
    return pcm_of(0.3 * np.random.default_rng(seed).standard_normal(round(seconds * RATE)))


def events_of(client, seconds=20):
    """All events until the server closes, and the code and reason of that."""
    events = []
    try:
        while True:
            events.append(json.loads(client.recv(seconds)))
    except ConnectionClosed as closed:
        return events, closed.rcvd.code if closed.rcvd else None


def stream(client, pcm, size=3200):
    """Send samples, then read until the server closes."""
    for begin in range(0, len(pcm), size):
        client.send(pcm[begin : begin + size])
    client.send('{"type": "end"}')
    return events_of(client)


def words_of(events):
    return [word for event in events if event["type"] == "final" for word in event["words"]]
