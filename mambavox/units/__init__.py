"""Units: k-means of features of speech, the targets of pre-training, and how well they fit phones."""

from mambavox.data import recording_keys
from mambavox.units.features import Features, LayerFeatures, MfccFeatures, load_features
from mambavox.units.kmeans import QuantizerMetadata, UnitQuantizer
from mambavox.units.labels import LabelsPlan, UnitLabels
from mambavox.units.targets import fit_quantizer, label_recordings, make_targets

__all__ = [
    "Features",
    "LabelsPlan",
    "LayerFeatures",
    "MfccFeatures",
    "QuantizerMetadata",
    "UnitLabels",
    "UnitQuantizer",
    "fit_quantizer",
    "label_recordings",
    "load_features",
    "make_targets",
    "recording_keys",
]
