"""What a model says of the tokens of a call: it travels as the attention mask, and is read later.

transformers makes the mask once for all layers of a kind, from a rule: causal, within a window,
within a chunk, packed. Here the rule itself travels, and each layer makes a graph of it, or takes
the graph that it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import masking_utils

from graphattn.graphs import Graph, batch, causal, complete, sliding_window


class Rule(NamedTuple):
    """The model's own graph, as far as transformers' rules of masks go.

    causal: Whether a token attends to those before it only.
    window: How many tokens back it attends, itself counted (causal), or to each side (not causal).
    chunk: Length of the chunks that it stays within.
    packed: (batch, tokens) int64, alike within a sequence; None if there is one.
    """

    causal: bool
    window: int | None = None
    chunk: int | None = None
    packed: Tensor | None = None

    @property
    def everything(self) -> bool:
        """Whether all keys are attended to, wherever they are."""
        return not self.causal and self.window is None


class Padding(NamedTuple):
    """The tokens of each item of a batch among those that were padded to one length.

    left: Padding before the first token, one number for each item.
    stop: One past the last token.
    holes: Whether an item is padded in between.
    """

    left: list[int]
    stop: list[int]
    holes: bool


_NO_TENSOR = (
    "which graphattn does not make; hf.restore(model) lets transformers compute its attention"
)


@dataclass(eq=False)
class Tokens:
    """The queries and keys of a call, and the rule of its mask; see `tokens_mask`.

    batch, queries, keys: Their numbers.
    offset, key_offset: Places in the sequence of the first of them.
    function: The rule, as a function `(batch, head, query, key) -> bool`.
    padding_mask: bool (batch, tokens), False where padded, or None.
    options: What else the model said, for transformers' own masks.
    kept: What layers worked out for each other.
    """

    batch: int
    queries: int
    keys: int
    offset: int
    key_offset: int
    function: Callable[..., Any]
    padding_mask: Tensor | None
    options: dict[str, Any]
    kept: dict[Any, Any] = field(default_factory=dict)

    ndim = 4  # as a mask that was made already: transformers then leaves it alone

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, 1, self.queries, self.keys

    def contiguous(self) -> Tokens:
        """Itself: what generate() asks of a mask that it made for a static cache."""
        return self

    def __radd__(self, bias: Tensor) -> Tensor:
        """A dense mask, for layers that add a bias to the mask by themselves (BEiT)."""
        return bias.masked_fill(~self.full, torch.finfo(bias.dtype).min)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the model reads {name} of a mask, {_NO_TENSOR}")

    def __getitem__(self, where: Any) -> Any:
        raise TypeError(f"the model takes a part of a mask, {_NO_TENSOR}")

    @property
    def stop(self) -> int:
        """One past the last token so far."""
        return self.offset + self.queries

    @cached_property
    def rule(self) -> Rule | None:
        """The rule, if it is one of transformers' usual ones."""
        return read(self.function)

    @cached_property
    def padding(self) -> Padding | None:
        """Where padding is among all tokens so far; None if there is none."""
        if (mask := self._padding_mask) is None:
            return None
        mask = mask[:, : self.stop if self._is_self else None]
        if bool(mask.all()):
            return None
        mask = mask.expand(self.batch, -1).int()
        count, left = mask.sum(1), mask.argmax(1)
        stop = torch.where(count > 0, mask.shape[1] - mask.flip(1).argmax(1), left)
        return Padding(left.tolist(), stop.tolist(), not torch.equal(stop - left, count))

    def real(self, keys: int) -> Tensor:
        """Which of so many keys are no padding, bool (batch, keys)."""
        mask = self._padding_mask
        if mask is None:
            return torch.ones(self.batch, keys, dtype=torch.bool, device=self.options["device"])
        return mask[:, self.key_offset : self.key_offset + keys].expand(self.batch, -1)

    @property
    def _padding_mask(self) -> Tensor | None:
        """Bool (batch, tokens), as long as the keys reach."""
        mask = masking_utils.prepare_padding_mask(self.padding_mask, self.keys, self.key_offset)
        return None if mask is None else mask.bool()

    @property
    def _is_self(self) -> bool:
        """Whether keys are the tokens of the queries, and not those of another sequence."""
        return self.rule is None or not self.rule.everything

    @cached_property
    def dense(self) -> Tensor | None:
        """The mask that transformers gives to torch: bool (batch, 1, queries, keys), or None."""
        return self._dense(self.options)

    @cached_property
    def full(self) -> Tensor:
        """The same, made in any case."""
        never = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        mask = self._dense({**self.options, **never})
        assert mask is not None
        return mask

    def _dense(self, options: dict[str, Any]) -> Tensor | None:
        return masking_utils.sdpa_mask(
            batch_size=self.batch,
            q_length=self.queries,
            kv_length=self.keys,
            q_offset=self.offset,
            kv_offset=self.key_offset,
            mask_function=self.function,
            attention_mask=self.padding_mask,
            **options,
        )


def tokens_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Any = None,
    **options: Any,
) -> Tokens:
    """The mask function of "graphattn": what it is told, as it is told it."""
    if isinstance(attention_mask, Tokens):  # generate() made it before the model does
        return attention_mask
    if q_length == 0:
        raise ValueError("there is no token to attend from: give a prompt of one token at least")
    offset = int(q_offset)  # static caches count in a tensor
    places = (batch_size, q_length, kv_length, offset, kv_offset)
    return Tokens(*places, mask_function, attention_mask, options)


# --- reading transformers' rules ------------------------------------------------------------------

_CODE = {
    name: make.__code__
    for name, make in {
        "and": masking_utils.and_masks(),
        "window": masking_utils.sliding_window_overlay(1),
        "both": masking_utils.sliding_window_bidirectional_overlay(1),
        "chunk": masking_utils.chunked_overlay(1, torch.zeros(1)),
        "packed": masking_utils.packed_sequence_mask_function(torch.zeros(1)),
        "remap": masking_utils.remap_positions_for_packed_sequence(len, torch.zeros(1)),
    }.items()
}


def read(function: Callable[..., Any]) -> Rule | None:
    """The rule that a mask function of transformers' is made of, or None if it is another.

    Example:
        >>> read(masking_utils.sliding_window_causal_mask_function(4))
        Rule(causal=True, window=4, chunk=None, packed=None)
    """
    parts: dict[str, Any] = {}
    if not _collect(function, parts) or not {"causal", "bidirectional", "both"} & parts.keys():
        return None
    if "causal" not in parts:
        known = parts.keys() <= {"bidirectional", "both"}
        return Rule(False, parts.get("both")) if known else None
    if "both" in parts or "bidirectional" in parts:
        return None
    return Rule(True, parts.get("window"), parts.get("chunk"), parts.get("packed"))


def _collect(function: Any, parts: dict[str, Any]) -> bool:
    """Enter the parts of a rule by name; False if one is unknown, or is there twice."""
    if function is masking_utils.causal_mask_function:
        return parts.setdefault("causal", function) is function
    if function is masking_utils.bidirectional_mask_function:
        return parts.setdefault("bidirectional", function) is function
    code: Any = getattr(function, "__code__", None)
    name = next((name for name, known in _CODE.items() if known is code), None)
    if name is None:
        return False
    cells = (cell.cell_contents for cell in function.__closure__)
    inside = dict(zip(code.co_freevars, cells))
    if name == "and":
        return all(_collect(part, parts) for part in inside["mask_functions"])
    if name == "remap":  # positions count on within a sequence, and differ as the places do
        return _collect(inside["mask_function"], parts)
    value = inside[{"chunk": "chunk_size", "packed": "packed_sequence_mask"}.get(name, _WINDOW)]
    return parts.setdefault(name, value) is value


_WINDOW = "sliding_window"


@lru_cache(maxsize=64)
def graph_of_rule(rule: Rule, num_nodes: int) -> Graph:
    """The graph of a rule on so many tokens, the sequences of a pack aside.

    Example:
        >>> graph_of_rule(Rule(causal=True, window=2), 4).mask().int().tolist()
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """
    if not rule.causal:
        window = rule.window
        return complete(num_nodes) if window is None else sliding_window(num_nodes, window)
    graph = causal(num_nodes)
    if rule.chunk is not None and rule.chunk < num_nodes:
        whole, rest = divmod(num_nodes, rule.chunk)
        graph = batch([causal(rule.chunk)] * whole + [causal(rest)] * (rest > 0))
    if rule.window is not None and rule.window < num_nodes:
        graph = graph & sliding_window(num_nodes, rule.window - 1)
    return graph
