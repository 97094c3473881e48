"""Whole models in reading order; the graph is an argument of every one."""

from graphattn.models.gpt import GPT
from graphattn.models.swin import Swin
from graphattn.models.vit import ViT

__all__ = ["GPT", "Swin", "ViT"]
