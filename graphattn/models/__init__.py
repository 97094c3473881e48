"""Whole models in reading order; the graph is an argument of every one."""

from graphattn.models.bert import BERT, mask_tokens
from graphattn.models.gpt import GPT
from graphattn.models.swin import Swin
from graphattn.models.vit import ViT

__all__ = ["BERT", "GPT", "Swin", "ViT", "mask_tokens"]
