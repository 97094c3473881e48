"""Models of every kind with tiny configs and random weights, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCAB, WIDTH, TOKENS = 64, 32, 12
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
NO_STOP = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
SEQ2SEQ = {
    "vocab_size": VOCAB,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    **NO_STOP,
}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}


@dataclass(frozen=True)
class Tiny:
    """A model class, its config, and what it is: "decoder", "encoder", "seq2seq", "image"."""

    model: Any
    config: Any
    options: dict[str, Any]
    kind: str

    def make(self, seed: int = 0, **options: Any) -> Any:
        torch.manual_seed(seed)
        model = self.model(self.config(**{**self.options, **options}))
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "sinks" in name:  # as made, attention is almost uniform
                nn.init.normal_(parameter, std=0.2)
        return model.eval()


MODELS = {
    "GPT-2": Tiny(
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config,
        {"vocab_size": VOCAB, "n_positions": 64, "n_embd": WIDTH, "n_layer": 2, "n_head": 4}
        | {"scale_attn_by_inverse_layer_idx": True, **NO_STOP},
        "decoder",
    ),
    "Llama": Tiny(transformers.LlamaForCausalLM, transformers.LlamaConfig, SIZES, "decoder"),
    "Mistral": Tiny(
        transformers.MistralForCausalLM,
        transformers.MistralConfig,
        {**SIZES, "sliding_window": 4},
        "decoder",
    ),
    "Gemma-2": Tiny(
        transformers.Gemma2ForCausalLM,
        transformers.Gemma2Config,
        {**SIZES, **LAYERS, "head_dim": 8, "attn_logit_softcapping": 1.5},
        "decoder",
    ),
    "Qwen3": Tiny(
        transformers.Qwen3ForCausalLM, transformers.Qwen3Config, {**SIZES, "head_dim": 8}, "decoder"
    ),
    "gpt-oss": Tiny(
        transformers.GptOssForCausalLM,
        transformers.GptOssConfig,
        {**SIZES, **LAYERS, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 2},
        "decoder",
    ),
    "Llama 4": Tiny(
        transformers.Llama4ForCausalLM,
        transformers.Llama4TextConfig,
        {**SIZES, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2}
        | {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 4}
        | {"num_experts_per_tok": 1, "no_rope_layers": [1, 0]},
        "decoder",
    ),
    "BERT": Tiny(
        transformers.BertModel,
        transformers.BertConfig,
        {key: value for key, value in SIZES.items() if key != "num_key_value_heads"},
        "encoder",
    ),
    "ModernBERT": Tiny(
        transformers.ModernBertModel,
        transformers.ModernBertConfig,
        {**SIZES, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
        | {"layer_types": ["sliding_attention", "full_attention"]},
        "encoder",
    ),
    "T5": Tiny(
        transformers.T5ForConditionalGeneration,
        transformers.T5Config,
        {"vocab_size": VOCAB, "d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2}
        | {"num_heads": 4, "relative_attention_num_buckets": 8}
        | {"relative_attention_max_distance": 16, "decoder_start_token_id": 0, **NO_STOP},
        "seq2seq",
    ),
    "BART": Tiny(
        transformers.BartForConditionalGeneration, transformers.BartConfig, SEQ2SEQ, "seq2seq"
    ),
    "Whisper": Tiny(
        transformers.WhisperForConditionalGeneration,
        transformers.WhisperConfig,
        {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 6, "max_target_positions": 64}
        | {"begin_suppress_tokens": None},
        "speech",
    ),
    "ViT": Tiny(
        transformers.ViTModel,
        transformers.ViTConfig,
        {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"intermediate_size": 48, "image_size": 16, "patch_size": 4},
        "image",
    ),
    "BEiT": Tiny(
        transformers.BeitModel,
        transformers.BeitConfig,
        {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"intermediate_size": 48, "image_size": 16, "patch_size": 4}
        | {"use_relative_position_bias": True},
        "image",
    ),
    "Swin": Tiny(
        transformers.SwinModel,
        transformers.SwinConfig,
        {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4]}
        | {"window_size": 4},
        "image",
    ),
}
GENERATING = [name for name, tiny in MODELS.items() if tiny.kind in ("decoder", "seq2seq")]


SIDES = (None, "left", "right", "both")
PADDED = [
    (name, side)
    for name, tiny in MODELS.items()
    for side in (SIDES[:1] if tiny.kind == "image" else SIDES)
]


def padding(side: str | None) -> Tensor | None:
    """A mask of three items, of which two are padded on that side."""
    if side is None:
        return None
    mask = torch.ones(3, TOKENS, dtype=torch.int64)
    for item, length in ((0, 3), (1, 5)):
        mask[item, slice(length) if side == "left" else slice(TOKENS - length, None)] = 0
    if side == "both":
        mask[1, :2] = 0
    return mask


def inputs(tiny: Tiny, side: str | None = None) -> dict[str, Tensor]:
    """What the model's forward takes, padded on a side."""
    made = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, VOCAB, (3, TOKENS), generator=made)
    if tiny.kind == "image":
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=made)}
    if tiny.kind == "speech":
        features = torch.randn(3, 8, 12, generator=made)
        given = {"input_features": features, "decoder_input_ids": tokens}
        mask = padding(side)
        return given if mask is None else {**given, "decoder_attention_mask": mask}
    given = {"input_ids": tokens}
    if (mask := padding(side)) is not None:
        given["attention_mask"] = mask
        if tiny.kind == "decoder":
            given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    if tiny.kind == "seq2seq":
        given["decoder_input_ids"] = tokens.flip(0)
    return given


def result(model: Any, given: dict[str, Tensor]) -> Tensor:
    """The logits, or the last hidden states."""
    out = model(**given)
    return out.logits if "logits" in out else out.last_hidden_state


def real(tiny: Tiny, side: str | None, out: Tensor) -> Callable[[Tensor], Tensor]:
    """What leaves the rows of tokens that are no padding."""
    mask = padding(side)
    if mask is None or tiny.kind in ("seq2seq", "image"):  # of seq2seq, the encoder's is padded
        return lambda x: x
    return lambda x: x[mask.bool()]
