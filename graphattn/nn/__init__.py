"""Layers: modules with parameters, built on `graphattn.attention` and on nothing below it."""

from graphattn.biases import ALiBi
from graphattn.nn.alignment import GlobalAttention, LocalAttention
from graphattn.nn.attention import GraphAttention
from graphattn.nn.biases import RelativePositionBias, ShortestPathBias, T5Bias
from graphattn.nn.encodings import laplacian_encoding, random_walk_encoding
from graphattn.nn.intra import LSTMN, IntraAttention
from graphattn.nn.normalizers import GumbelSoftmax, Reinforce, SinkSoftmax
from graphattn.nn.positions import LearnedPositions, Rotary, SinusoidalPositions
from graphattn.nn.scores import GAT, Additive, Bilinear, Concat, Cosine, GATv2, Location
from graphattn.nn.transformer import DecoderBlock, TransformerBlock

__all__ = [
    "ALiBi",
    "Additive",
    "Bilinear",
    "Concat",
    "Cosine",
    "DecoderBlock",
    "GAT",
    "GATv2",
    "GlobalAttention",
    "GraphAttention",
    "GumbelSoftmax",
    "IntraAttention",
    "LSTMN",
    "LearnedPositions",
    "LocalAttention",
    "Location",
    "Reinforce",
    "RelativePositionBias",
    "Rotary",
    "ShortestPathBias",
    "SinkSoftmax",
    "SinusoidalPositions",
    "T5Bias",
    "TransformerBlock",
    "laplacian_encoding",
    "random_walk_encoding",
]
