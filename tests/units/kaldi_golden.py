"""Prints the golden values of test_features.py: pip install kaldi-native-fbank==1.23.0, then run this file."""

import numpy as np


def signal():
    """A tone that sweeps upwards in noise: in pure tones Kaldi's single precision would decide the quiet mel bins."""
    t = np.arange(8000) / 16_000
    noise = np.random.default_rng(0).standard_normal(8000)
    return (0.3 * np.sin(2 * np.pi * (200 * t + 3000 * t**2)) + 0.02 * noise).astype(np.float32)


if __name__ == "__main__":
    import kaldi_native_fbank

    options = kaldi_native_fbank.MfccOptions()
    options.frame_opts.dither = 0
    options.use_energy = False
    extractor = kaldi_native_fbank.OnlineMfcc(options)
    extractor.accept_waveform(16_000, signal().tolist())
    extractor.input_finished()
    print(extractor.num_frames_ready)
    for frame in (0, 20, 40):
        print(np.round(extractor.get_frame(frame), 3).tolist())
