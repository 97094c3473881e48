"""Layers: modules with parameters, built on `graphattn.attention` and on nothing below it."""

from graphattn.biases import ALiBi
from graphattn.nn.alignment import GlobalAttention, LocalAttention
from graphattn.nn.attention import GraphAttention
from graphattn.nn.biases import RelativePositionBias, ShortestPathBias, T5Bias
from graphattn.nn.cache import Draft, KVCache
from graphattn.nn.encodings import laplacian_encoding, random_walk_encoding
from graphattn.nn.hopfield import HopfieldNetwork, hebbian_weights, projection_weights
from graphattn.nn.intra import LSTMN, IntraAttention
from graphattn.nn.lookup import LookupAttention, nadaraya_watson
from graphattn.nn.memory import ExternalMemory
from graphattn.nn.modern_hopfield import ModernHopfield
from graphattn.nn.normalizers import GumbelSoftmax, Reinforce, SinkSoftmax
from graphattn.nn.positions import LearnedPositions, Rotary, SinusoidalPositions
from graphattn.nn.scores import GAT, Additive, Bilinear, Concat, Cosine, GATv2, Location
from graphattn.nn.transformer import (
    DecoderBlock,
    GatedPerceptron,
    TransformerBlock,
    perceptron,
    post_norm,
    pre_norm,
)

__all__ = [
    "ALiBi",
    "Additive",
    "Bilinear",
    "Concat",
    "Cosine",
    "DecoderBlock",
    "Draft",
    "ExternalMemory",
    "GAT",
    "GATv2",
    "GatedPerceptron",
    "GlobalAttention",
    "GraphAttention",
    "GumbelSoftmax",
    "HopfieldNetwork",
    "IntraAttention",
    "KVCache",
    "LSTMN",
    "LearnedPositions",
    "LocalAttention",
    "Location",
    "LookupAttention",
    "ModernHopfield",
    "Reinforce",
    "RelativePositionBias",
    "Rotary",
    "ShortestPathBias",
    "SinkSoftmax",
    "SinusoidalPositions",
    "T5Bias",
    "TransformerBlock",
    "hebbian_weights",
    "laplacian_encoding",
    "nadaraya_watson",
    "perceptron",
    "post_norm",
    "pre_norm",
    "projection_weights",
    "random_walk_encoding",
]
