"""Whole models in reading order; the graph is an argument of every one."""

from graphattn.models.bert import BERT, mask_tokens
from graphattn.models.decoding import Hypothesis, beam_search, greedy
from graphattn.models.gpt import GPT
from graphattn.models.inference import DecomposableAttention
from graphattn.models.recurrent import (
    BahdanauDecoder,
    LuongDecoder,
    Seq2SeqGRU,
    source_graph,
)
from graphattn.models.sampling import Choice
from graphattn.models.seq2seq import Seq2SeqTransformer, sentence_graphs
from graphattn.models.speculative import Proposal, Speculation, prompt_lookup, speculative
from graphattn.models.swin import Swin
from graphattn.models.vit import ViT

__all__ = [
    "BERT",
    "BahdanauDecoder",
    "Choice",
    "DecomposableAttention",
    "GPT",
    "Hypothesis",
    "LuongDecoder",
    "Proposal",
    "Seq2SeqGRU",
    "Seq2SeqTransformer",
    "Speculation",
    "Swin",
    "ViT",
    "beam_search",
    "greedy",
    "mask_tokens",
    "prompt_lookup",
    "sentence_graphs",
    "source_graph",
    "speculative",
]
