"""What every kernel is held to: the truth in float64, one tolerance, and one table of cases.

The truth is dense and knows nothing of the package but `edge_index`: every edge gets a slot of its
own in a grid of (destination, source, copy), and slots without an edge are -inf. For kernels in
float64, the same formula is computed in extended precision (tests/extended.py).
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

import graphattn as ga
from graphattn import Graph, Projected
from graphattn.normalizers import Softmax, TopK
from graphattn.plan import KERNELS
from graphattn.scores import Additive
from tests.extended import extended, rounded

KERNEL_NAMES = [kernel.name for kernel in KERNELS]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

ROUNDINGS = 1.0  # roundings of all terms that a kernel may add to twice the error of plain torch


# --- the truth ------------------------------------------------------------------------------------


class Truth(NamedTuple):
    """out (*batch, num_dst, heads, value_dim), weights (*batch, E, heads), lse (…, dst, heads)."""

    out: Tensor
    weights: Tensor
    lse: Tensor


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    graph: Graph,
    *,
    edge_value=None,
    normalizer: Any = "softmax",
    **options: Any,
) -> Truth:
    """The formula over all pairs, in the precision of its inputs.

    Edges may be parallel (each counts) or switched off by a bias of -inf; a destination without
    edges is 0.
    """
    src, dst = graph.edge_index
    copy = copies(graph)
    num_copies = max(copy.tolist(), default=0) + 1
    shape = (*q.shape[:-3], graph.num_dst, graph.num_src, num_copies, q.shape[-2])
    grid = q.new_full(shape, -math.inf)
    grid[..., dst, src, copy, :] = edge_logits(q, k, graph, **options)
    rows = grid.flatten(-3, -2)  # (*batch, num_dst, num_src * copies, heads)
    w = NORMALIZED[case_name(normalizer)](rows, normalizer).view(shape)
    out = torch.einsum("...ijh,...jhd->...ihd", w.sum(-2), every_head(v, q))
    w = w[..., dst, src, copy, :]
    if edge_value is not None:
        listens = (dst == torch.arange(graph.num_dst)[:, None]).to(w.dtype)  # (num_dst, E)
        values = w[..., None] * every_head(written_out(edge_value), q)
        out = out + torch.einsum("ie,...ehd->...ihd", listens, values)
    return Truth(out, w, rows.logsumexp(-2))


# --- normalizers, of rows (…, num_dst, slots, heads) that are -inf without an edge ----------------


def case_name(normalizer: Any) -> str:
    return normalizer if isinstance(normalizer, str) else type(normalizer).__name__


def dense_softmax(rows: Tensor, _: Any) -> Tensor:
    deaf = (rows == -math.inf).all(-2, keepdim=True)
    return rows.masked_fill(deaf, 0.0).softmax(-2).masked_fill(deaf, 0.0)


def dense_sink(rows: Tensor, normalizer: Any) -> Tensor:
    """Softmax with one more slot."""
    sink = torch.as_tensor(normalizer.sink, dtype=rows.dtype).expand(rows[..., :1, :].shape)
    return torch.cat([rows, sink], -2).softmax(-2)[..., :-1, :]


def dense_sigmoid(rows: Tensor, _: Any) -> Tensor:
    off = rows == -math.inf
    return (1 / (1 + (-rows.masked_fill(off, 0.0)).exp())).masked_fill(off, 0.0)


def dense_identity(rows: Tensor, _: Any) -> Tensor:
    return torch.where(rows == -math.inf, 0.0, rows)


def dense_mean(rows: Tensor, _: Any) -> Tensor:
    return dense_identity(rows, _) / (rows != -math.inf).sum(-2, keepdim=True).clamp(min=1)


def dense_sparsemax(rows: Tensor, _: Any) -> Tensor:
    """Martins and Astudillo 2016, algorithm 1."""
    if not rows.shape[-2]:
        return rows
    z = rows.sort(dim=-2, descending=True).values
    k = torch.arange(1, rows.shape[-2] + 1)[:, None]
    sums = z.cumsum(-2)
    support = (1 + k * z > sums).sum(-2, keepdim=True).clamp(min=1)
    threshold = (sums.gather(-2, support - 1) - 1) / support
    return (rows - threshold).clamp(min=0).nan_to_num(0.0)  # NaN: all of the row is -inf


def dense_entmax15(rows: Tensor, _: Any) -> Tensor:
    """Peters et al. 2019, algorithm 2."""
    if not rows.shape[-2]:
        return rows
    off = rows == -math.inf
    top = rows.masked_fill(off, 0.0).detach().amax(-2, keepdim=True)
    x = torch.where(off, top - 100, rows) / 2
    z = x.sort(dim=-2, descending=True).values
    k = torch.arange(1, rows.shape[-2] + 1, dtype=rows.dtype)[:, None]
    means, squares = z.cumsum(-2) / k, z.square().cumsum(-2) / k
    room = (1 - k * (squares - means.square())) / k
    thresholds = means - room.clamp(min=1e-9).sqrt()
    support = (thresholds <= z).sum(-2, keepdim=True)
    w = (x - thresholds.gather(-2, support - 1)).clamp(min=0).square()
    return w.masked_fill(off, 0.0)


def dense_top_k(rows: Tensor, normalizer: Any) -> Tensor:
    order = rows.argsort(dim=-2, descending=True, stable=True)
    first = torch.zeros_like(rows, dtype=torch.bool)
    first.scatter_(-2, order[..., : normalizer.k, :], True)
    return dense_softmax(rows.masked_fill(~first, -math.inf), None)


def dense_argmax(rows: Tensor, _: Any) -> Tensor:
    if not rows.shape[-2]:
        return rows
    hard = torch.zeros_like(rows).scatter_(-2, rows.argmax(-2, keepdim=True), 1.0)
    hard = hard.masked_fill(rows == -math.inf, 0.0)
    soft = dense_softmax(rows, None)
    return hard + soft - soft.detach()


NORMALIZED = {
    "softmax": dense_softmax,
    "Softmax": dense_sink,
    "sigmoid": dense_sigmoid,
    "none": dense_identity,
    "mean": dense_mean,
    "sparsemax": dense_sparsemax,
    "entmax15": dense_entmax15,
    "TopK": dense_top_k,
    "argmax": dense_argmax,
}


# --- scores ---------------------------------------------------------------------------------------


def edge_logits(
    q, k, graph: Graph, *, score: Any = "dot", bias=None, scale=None, softcap=None, edge_key=None
) -> Tensor:
    """`softcap(scale * score) + bias` of every edge, (*batch, E, heads)."""
    src, dst = graph.edge_index
    k = every_head(k, q)
    if score == "dot":
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if edge_key is not None:
        q_i, k_j = q[..., dst, :, :], k[..., src, :, :] + every_head(written_out(edge_key), q)
        pairs = _pair_score(score, q_i, k_j)
    elif score == "dot":
        pairs = torch.einsum("...ihd,...jhd->...ijh", q, k)[..., dst, src, :]
    elif isinstance(score, Additive):
        pairs = q[..., :, None, :, :] + k[..., None, :, :, :]
        leaky = torch.where(pairs > 0, pairs, score.negative_slope * pairs)
        pairs = pairs.tanh() if score.activation == "tanh" else leaky
        pairs = torch.einsum("...ijhd,hd->...ijh", pairs, score.weight)[..., dst, src, :]
    else:
        pairs = score(q[..., dst, :, :], k[..., src, :, :], torch.arange(len(dst)))
    logits = pairs if scale is None else scale * pairs
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    if bias is None:
        return logits
    return logits + (bias if isinstance(bias, Tensor) else bias(dst, src)).to(q.dtype)


def _pair_score(score: Any, q_i: Tensor, k_j: Tensor) -> Tensor:
    if score == "dot":
        return torch.einsum("...ehd,...ehd->...eh", q_i, k_j)
    if not isinstance(score, Additive):
        return score(q_i, k_j, torch.arange(q_i.shape[-3]))
    pairs = q_i + k_j
    leaky = torch.where(pairs > 0, pairs, score.negative_slope * pairs)
    pairs = pairs.tanh() if score.activation == "tanh" else leaky
    return torch.einsum("...ehd,hd->...eh", pairs, score.weight)


def every_head(x: Tensor, q: Tensor) -> Tensor:
    """Key heads repeated for the query heads of their group."""
    return x.repeat_interleave(q.shape[-2] // x.shape[-2], dim=-2)


def written_out(features: Any) -> Tensor:
    """Features of edges, (…, E, kv_heads, dim)."""
    if isinstance(features, Tensor):
        return features
    return torch.einsum("...ec,hdc->...ehd", features.features, features.weight)


@cache
def copies(graph: Graph) -> Tensor:
    """Which of the parallel edges between its two nodes each edge is: 0, 1, 2, ..."""
    seen: Counter[tuple[int, int]] = Counter()
    numbers = []
    for src, dst in graph.edge_index.T.tolist():
        numbers.append(seen[src, dst])
        seen[src, dst] += 1
    return torch.tensor(numbers, dtype=torch.int64)


# --- the tolerance --------------------------------------------------------------------------------


def assert_close(
    what: str,
    got: Tensor,
    plain: Tensor,
    truth: Tensor,
    *,
    factor: float = 1.0,
    size: float | None = None,
) -> None:
    """`err(got) <= factor * (2 * err(plain torch in the same dtype) + c * eps * size)`.

    `size` is max|truth|, or the largest sum of absolute values that the truth is a sum of: a
    gradient in which all terms cancel is rounded as they are.
    """
    assert got.shape == truth.shape, f"{what}: {tuple(got.shape)}, not {tuple(truth.shape)}"
    assert not got.isnan().any(), f"{what} is NaN"
    finite = truth.isfinite()  # a log-sum-exp of -inf must be just that
    assert torch.equal(got[~finite].double(), truth[~finite]), f"{what}: -inf at other places"
    if not finite.any():
        return
    rounding = torch.finfo(got.dtype).eps * (size or float(truth[finite].abs().max()))
    allowed = factor * (2 * _error(plain, truth, finite) + ROUNDINGS * rounding)
    error = _error(got, truth, finite)
    assert math.isfinite(allowed), f"{what}: plain torch overflows, the case says nothing"
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"


def _error(got: Tensor, truth: Tensor, where: Tensor) -> float:
    return float((got.detach().double() - truth)[where].abs().max())


# --- the cases ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Case:
    """One call of attention, to be drawn in any dtype.

    layout: "contiguous"; "packed" (q, k, v are views of one tensor); "heads first" (transposed);
        "strided" (every other element of the last dimension); "expanded" (batch of stride 0).
    bias: None, or words of "tensor", "one head", "batched", "function", "holes" (some -inf),
        "dead row" (all edges of some destinations -inf), "wide" (float32 always).
    score: "dot", "tanh", "leaky_relu" or "function".
    normalizer: A name, or "sink", "off by one", "given sink", "top 2".
    edges: Features of edges, words of "key", "value", "batched", "projected", "apart" (each from
        features of its own).
    spread: Factor of the queries, a power of two; at 4096 logits reach 1e4, of both signs.
    """

    name: str
    graph: Graph
    batch: tuple[int, ...] = ()
    heads: int = 2
    kv_heads: int | None = None
    head_dim: int = 8
    value_dim: int | None = None
    layout: str = "contiguous"
    bias: str | None = None
    score: str = "dot"
    normalizer: str = "softmax"
    scale: float | None = None
    softcap: float | None = None
    spread: float = 1.0
    edges: str = ""


class Inputs(NamedTuple):
    """Arguments of attention, and all that a gradient is asked of."""

    query: Tensor
    key: Tensor
    value: Tensor
    graph: Graph
    options: dict[str, Any]
    leaves: dict[str, Tensor]
    grad_out: Tensor


def draw(
    case: Case,
    dtype: torch.dtype,
    compute: torch.dtype | None = None,
    *,
    hold: Callable[[Tensor], Tensor] = torch.detach,
    absolute: bool = False,
    device: str = "cpu",
) -> Inputs:
    """Numbers of `dtype`, the same at every call, held in `compute` (by default in `dtype`).

    hold: Applied to each drawn tensor before anything is computed of it; `extended` for more bits.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    compute = compute or dtype
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, *shape: int, kept: torch.dtype = dtype) -> Tensor:
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name == "key" and case.spread != 1:
            # Keys that are alike but for signs: large logits of which several compete in a row.
            alike = numbers[..., :1, :, :] + numbers / case.spread
            numbers = numbers[..., :1].sign() * alike
        numbers = numbers.abs() if absolute else numbers
        wide = torch.promote_types(compute, kept)
        leaves[name] = hold(numbers.to(kept).to(device, wide)).requires_grad_()
        return leaves[name]

    graph, heads = case.graph.to(device), case.heads
    kv_heads, value_dim = case.kv_heads or heads, case.value_dim or case.head_dim
    query = (*case.batch, graph.num_dst, heads, case.head_dim)
    key = (*case.batch, graph.num_src, kv_heads, case.head_dim)
    shapes = {"query": query, "key": key, "value": (*key[:-1], value_dim)}
    if case.layout == "packed":
        q, k, v = leaf("packed", *query[:-2], 3, *query[-2:]).unbind(-3)
    else:
        q, k, v = (_laid_out(case.layout, leaf, name, shape) for name, shape in shapes.items())
    q = q * case.spread if case.spread != 1 else q
    options: dict[str, Any] = {}
    if case.scale is not None:
        options["scale"] = abs(case.scale) if absolute else case.scale
    if case.softcap is not None:
        options["softcap"] = case.softcap
    if case.score != "dot":
        options["score"] = _score(case, leaf)
    if case.normalizer != "softmax":
        options["normalizer"] = _normalizer(case, leaf)
    if case.bias is not None:
        options["bias"] = _bias(case, graph, leaf)
    batch = case.batch if "batched" in case.edges else ()
    for name, dim in (("key", case.head_dim), ("value", value_dim)):
        if name in case.edges and "projected" in case.edges:
            kind = f"edge for {name}" if "apart" in case.edges else "edge"
            features = leaves[kind] if kind in leaves else leaf(kind, *batch, graph.num_edges, 3)
            weight = leaf(f"edge_{name}", kv_heads, dim, 3)
            options[f"edge_{name}"] = Projected(features, weight)
        elif name in case.edges:
            shape = (*batch, graph.num_edges, kv_heads, dim)
            options[f"edge_{name}"] = leaf(f"edge_{name}", *shape)
    grad_out = torch.randn((*query[:-1], value_dim), generator=generator, dtype=torch.float64)
    grad_out = grad_out.abs() if absolute else grad_out
    grad_out = hold(grad_out.to(dtype).to(device, compute))
    return Inputs(q, k, v, graph, options, leaves, grad_out)


def _laid_out(layout: str, leaf, name: str, shape: tuple[int, ...]) -> Tensor:
    if layout == "heads first":
        return leaf(name, *shape[:-3], shape[-2], shape[-3], shape[-1]).transpose(-3, -2)
    if layout == "strided":
        return leaf(name, *shape[:-1], 2 * shape[-1])[..., ::2]
    if layout == "expanded":
        return leaf(name, *shape[-3:]).expand(shape)
    return leaf(name, *shape)


def _score(case: Case, leaf) -> Any:
    if case.score in ("tanh", "leaky_relu"):
        return Additive(leaf("score", case.heads, case.head_dim), case.score)
    table = leaf("score", case.graph.num_edges, case.heads)

    def near(q_i: Tensor, k_j: Tensor, edge: Tensor) -> Tensor:
        return table[edge] - (q_i - k_j).square().mean(-1)

    return near


def _normalizer(case: Case, leaf) -> Any:
    if case.normalizer == "sink":
        return Softmax(leaf("sink", case.heads))
    numbers = {"off by one": Softmax(0.0), "given sink": Softmax(0.1), "top 2": TopK(2)}
    return numbers.get(case.normalizer, case.normalizer)


def _bias(case: Case, graph: Graph, leaf) -> Any:
    words = case.bias or ""
    heads = 1 if "one head" in words else case.heads
    kept = {"kept": torch.float32} if "wide" in words else {}
    if "function" in words:
        table = leaf("bias", 7, heads, **kept)

        def bias(dst: Tensor, src: Tensor) -> Tensor:
            found = table[(3 * dst + src) % 7]
            return _with_holes(found, words, dst, src)

        return bias
    src, dst = graph.edge_index
    batch = case.batch if "batched" in words else ()
    return _with_holes(leaf("bias", *batch, len(dst), heads, **kept), words, dst, src)


def _with_holes(values: Tensor, words: str, dst: Tensor, src: Tensor) -> Tensor:
    hole = torch.zeros_like(dst, dtype=torch.bool)
    if "holes" in words:
        hole |= (dst + 2 * src) % 3 == 0
    if "dead row" in words:
        hole |= dst % 4 == 1
    return values.masked_fill(hole[:, None], -math.inf)


class Expected(NamedTuple):
    """Of the output, named "output", and of the gradient of every leaf.

    plain: The formula in the dtype of the inputs.
    truth: The formula on the same numbers in float64; in extended precision if they are float64.
    size: The largest sum of absolute terms.
    """

    plain: dict[str, Tensor]
    truth: dict[str, Tensor]
    size: dict[str, float]


def results(inputs: Inputs, out: Tensor) -> dict[str, Tensor]:
    """The output and the gradient of every leaf."""
    grads = gradients(out, inputs, inputs.grad_out)
    return {"output": out.detach(), **grads}


def gradients(out: Tensor, inputs: Inputs, grad_out: Tensor | None = None) -> dict[str, Tensor]:
    leaves = inputs.leaves
    grads = torch.autograd.grad(out, list(leaves.values()), grad_out, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }


@cache
def expected(case: Case, dtype: torch.dtype) -> Expected:
    hold = extended if dtype == torch.float64 else torch.detach
    truth, w = _computed(draw(case, dtype, torch.float64, hold=hold))
    if dtype == torch.float64:  # the same bound as in float32, in finer units, on every processor
        rough = expected(case, torch.float32)
        finer = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        plain = {
            name: number + finer * (rough.plain[name] - rough.truth[name])
            for name, number in truth.items()
        }
    else:
        plain, _ = _computed(draw(case, dtype))
    return Expected(plain, truth, _sizes(case, dtype, rounded(w)))


def _computed(inputs: Inputs) -> tuple[dict[str, Tensor], Tensor]:
    """Return the results of the formula, and its weights."""
    found = dense_attention(*inputs[:4], **inputs.options)
    return results(inputs, found.out), found.weights.detach()


def _sizes(case: Case, dtype: torch.dtype, w: Tensor) -> dict[str, float]:
    """The sums that make the output and the gradients, of absolute values throughout.

    A logit is rounded, too: a weight moves by as many roundings as its logit is large.
    """
    inputs = draw(case, dtype, torch.float64, absolute=True)
    q, k, v, graph, options, _, grad_out = inputs
    src, dst = graph.edge_index

    def row_sum(numbers: Tensor) -> Tensor:
        """Over the edges of the destination of each edge, (*batch, E, heads)."""
        return q.new_zeros(q.shape[:-1]).index_add(-2, dst, numbers)[..., dst, :]

    edge_value, normalizer = options.pop("edge_value", None), options.pop("normalizer", None)
    logits = edge_logits(q, k, graph, **options)
    large = logits.detach().abs().nan_to_num(posinf=0.0)
    w = w.abs()
    if isinstance(normalizer, str):  # no weight changes faster than its logit
        w, slope = w + large, torch.ones_like(w)
    else:
        w = slope = w * (1 + large + row_sum(w * large))
    v_j = every_head(v, q)[..., src, :, :]
    if edge_value is not None:
        v_j = v_j + every_head(written_out(edge_value), q)
    out = torch.zeros_like(grad_out).index_add(-3, dst, w[..., None] * v_j)
    grad_w = (grad_out[..., dst, :, :] * v_j).sum(-1)  # (*batch, E, heads)
    grad_logits = slope * (grad_w + row_sum(w * grad_w))
    surrogate = (grad_logits.detach() * logits).sum() + (w * grad_w).sum()
    if "sink" in inputs.leaves:
        surrogate = surrogate + (inputs.leaves["sink"] * (w * grad_w).detach()).sum()
    sizes = {"output": out, **gradients(surrogate, inputs)}
    return {
        name: float(size.detach().abs().amax()) if size.numel() else 0.0
        for name, size in sizes.items()
    }


def shuffled(graph: Graph) -> Graph:
    """The same edges as a plain list in another order."""
    order = torch.randperm(graph.num_edges, generator=torch.Generator().manual_seed(1))
    return ga.from_edges(graph.edge_index[:, order], num_dst=graph.num_dst, num_src=graph.num_src)


def random_edges(num_dst: int, num_src: int, num_edges: int, *, isolated: bool = False) -> Graph:
    """Unsorted edges, parallel ones among them; `isolated`: none at the first and last nodes."""
    generator = torch.Generator().manual_seed(num_edges)
    low = 2 if isolated else 0
    dst = torch.randint(low, num_dst - low, (num_edges,), generator=generator)
    src = torch.randint(low, num_src - low, (num_edges,), generator=generator)
    return ga.from_edges(torch.stack([src, dst]), num_dst=num_dst, num_src=num_src)


MIXED = ga.batch([ga.complete(3), ga.causal(4), ga.complete(3), ga.bipartite(2, 5), ga.complete(1)])
WINDOWS = ga.shifted_windows((5, 7), (3, 2), (1, 1))
PARALLEL = random_edges(9, 11, 150)
ISOLATED = random_edges(11, 13, 30, isolated=True)
NONE = ga.from_edges(torch.zeros(2, 0, dtype=torch.int64), 5)
BIGBIRD = (ga.sliding_window(17, 2) | ga.hubs(17, [0]) | ga.expander(17, 4)) & ga.causal(17)
# Blocks whose nodes are neither consecutive nor in order, with isolated ones at both ends.
SCATTERED = shuffled(
    ga.from_edges(
        [[1, 5, 1, 5, 2, 7, 4, 2, 7, 4], [6, 6, 1, 1, 2, 2, 2, 4, 4, 4]], num_dst=8, num_src=9
    )
)

CASES = [
    # every graph
    Case("complete", ga.complete(7)),
    Case("complete, size 0", ga.complete(0)),
    Case("complete, size 1", ga.complete(1)),
    Case("complete, tiles", ga.complete(131), head_dim=64, heads=1),
    Case("more destinations", ga.bipartite(13, 5)),
    Case("more sources", ga.bipartite(5, 13)),
    Case("no sources", ga.bipartite(3, 0)),
    Case("no destinations", ga.bipartite(0, 3)),
    Case("causal", ga.causal(17)),
    Case("causal, tiles", ga.causal(131), head_dim=64, heads=1),
    Case("causal rows", ga.causal(11).rows(5, 8)),
    Case("causal transposed", ga.causal(7).T),
    Case("prefix", ga.prefix(11, 4)),
    Case("sliding window", ga.sliding_window(13, 2)),
    Case("only loops", ga.sliding_window(5, 0)),
    Case("causal window", ga.causal(13) & ga.sliding_window(13, 3)),
    Case("dilated", ga.dilated(13, 2, 3)),
    Case("windows", ga.shifted_windows((6, 4), 2)),
    Case("shifted windows", WINDOWS),
    Case("neighborhood", ga.neighborhood((3, 5), 1)),
    Case("neighborhood, 3-D", ga.neighborhood((2, 3, 3), 1, border="cut")),
    Case("axial", ga.axial((3, 4))),
    Case("hubs", ga.hubs(11, [0, 5])),
    Case("expander", ga.expander(12, 3)),
    Case("bigbird", BIGBIRD),
    Case("batch of mixed blocks", MIXED),
    Case("batch of equal blocks", ga.batch([ga.causal(5)] * 3)),
    Case("batch of sparse", ga.batch([ga.sliding_window(5, 1), ga.hubs(4, [3]), ga.complete(2)])),
    Case("permuted", ga.causal(7).permuted([3, 0, 6, 1, 5, 2, 4])),
    Case("without loops", ga.complete(7).without_self_loops()),
    Case("complete as edges", shuffled(ga.complete(7))),
    Case("causal as edges", shuffled(ga.causal(7))),
    Case("windows as edges", shuffled(WINDOWS)),
    Case("scattered blocks", SCATTERED),
    Case("parallel edges", PARALLEL),
    Case("isolated nodes", ISOLATED),
    Case("no edges", NONE),
    Case("sources alone", ga.from_edges([[0, 6], [2, 2]], num_dst=4, num_src=7)),
    Case("a hub of 100,000", ga.bipartite(2, 100_000), heads=1, head_dim=4),
    Case(
        "a hub as edges",
        ga.from_edges([[*range(100_000)], [1] * 100_000], num_dst=3, num_src=100_000),
        heads=1,
        head_dim=4,
    ),
    # shapes
    *(
        Case(f"{words}, {name}", graph, **options)
        for name, graph in [
            ("causal", ga.causal(7)),
            ("mixed blocks", MIXED),
            ("parallel edges", PARALLEL),
            ("isolated nodes", ISOLATED),
        ]
        for words, options in [
            ("batch of 2", {"batch": (2,)}),
            ("batch of 2 x 3", {"batch": (2, 3)}),
            ("batch of 0", {"batch": (0,)}),
            ("grouped heads", {"batch": (2,), "heads": 6, "kv_heads": 2}),
            ("one key head", {"heads": 4, "kv_heads": 1, "value_dim": 3}),
            ("wide values", {"value_dim": 19, "heads": 3}),
            ("head_dim 1", {"head_dim": 1}),
            ("head_dim 64", {"head_dim": 64, "heads": 1}),
            ("head_dim 13", {"head_dim": 13, "heads": 3}),
            ("heads first", {"layout": "heads first", "batch": (2,)}),
            ("strided", {"layout": "strided"}),
            ("expanded", {"layout": "expanded", "batch": (2, 3)}),
            ("large logits", {"spread": 4096}),
            ("large logits, grouped", {"spread": 4096, "heads": 4, "kv_heads": 2, "batch": (2,)}),
            ("given scale", {"scale": 0.3}),
            ("negative scale", {"scale": -1.5}),
            ("negative scale, large logits", {"scale": -1.0, "spread": 4096}),
            ("scale 0", {"scale": 0.0}),
            ("bias", {"bias": "tensor", "batch": (2,)}),
            ("bias of one head", {"bias": "tensor, one head"}),
            ("batched bias", {"bias": "tensor, batched", "batch": (2, 3)}),
            ("bias with holes", {"bias": "tensor, holes", "heads": 4, "kv_heads": 2}),
            ("bias with dead rows", {"bias": "tensor, holes, dead row", "batch": (2,)}),
            ("wide bias", {"bias": "tensor, wide"}),
            ("bias function", {"bias": "function", "batch": (2,)}),
            ("bias function of one head", {"bias": "function, one head", "batch": (2, 3)}),
            ("bias function with holes", {"bias": "function, holes, dead row"}),
            ("bias, large logits", {"bias": "tensor, holes", "spread": 4096}),
            ("additive tanh", {"score": "tanh", "batch": (2,)}),
            ("additive leaky_relu", {"score": "leaky_relu", "kv_heads": 1, "bias": "tensor"}),
            ("own score", {"score": "function", "batch": (2,), "bias": "function", "scale": 0.7}),
            ("edge features", {"edges": "key value", "batch": (2,)}),
            ("edge keys", {"edges": "key batched", "batch": (2, 3), "heads": 4, "kv_heads": 2}),
            ("edge values", {"edges": "value", "value_dim": 5, "bias": "tensor, holes"}),
            ("edge features, tanh", {"edges": "key value batched", "batch": (2,), "score": "tanh"}),
            ("edge features, leaky_relu", {"edges": "key", "score": "leaky_relu", "heads": 4}),
            ("edge features, own score", {"edges": "key value", "score": "function"}),
            ("projected", {"edges": "key value projected", "batch": (2,)}),
            ("projected keys", {"edges": "key projected batched", "batch": (2, 3), "kv_heads": 1}),
            ("projected values", {"edges": "value projected", "value_dim": 5, "bias": "tensor"}),
            ("projected, apart", {"edges": "key value projected apart", "normalizer": "sink"}),
            ("projected, tanh", {"edges": "key value projected", "score": "tanh", "softcap": 0.7}),
            (
                "projected, sparsemax",
                {"edges": "key value projected", "normalizer": "sparsemax", "value_dim": 5},
            ),
            ("sink", {"normalizer": "sink", "batch": (2,), "heads": 4, "kv_heads": 2}),
            ("sink, bias with dead rows", {"normalizer": "sink", "bias": "tensor, dead row"}),
            ("sink, large logits", {"normalizer": "sink", "spread": 4096}),
            ("off by one", {"normalizer": "off by one", "score": "function"}),
            ("given sink", {"normalizer": "given sink"}),
            ("soft-capping", {"softcap": 0.7, "batch": (2,), "bias": "tensor, holes"}),
            ("soft-capping, large logits", {"softcap": 8e3, "spread": 4096}),
            ("soft-capping, tanh", {"softcap": 0.7, "score": "tanh", "edges": "key"}),
            ("sigmoid", {"normalizer": "sigmoid", "batch": (2,), "heads": 4, "kv_heads": 2}),
            ("sigmoid, bias with holes", {"normalizer": "sigmoid", "bias": "tensor, holes"}),
            ("none", {"normalizer": "none", "batch": (2,), "softcap": 2.0}),
            ("none, bias with holes", {"normalizer": "none", "bias": "tensor, holes"}),
            ("none, edge features", {"normalizer": "none", "edges": "key value", "bias": "tensor"}),
        ]
    ),
    *(
        Case(f"{normalizer}{words}, {name}", graph, normalizer=normalizer, **options)
        for name, graph in [
            ("window", ga.sliding_window(13, 2)),
            ("windows as edges", shuffled(WINDOWS)),
            ("no edges", NONE),
            ("parallel edges", PARALLEL),
        ]
        for normalizer in ("mean", "sparsemax", "entmax15", "top 2", "argmax")
        if name != "parallel edges"
        or normalizer not in ("top 2", "argmax")  # there, equals compete
        for words, options in [
            ("", {"batch": (2,), "heads": 4, "kv_heads": 2}),
            (", holes", {"bias": "tensor, holes, dead row", "score": "leaky_relu"}),
        ]
    ),
    Case("packed, causal", ga.causal(7), layout="packed", batch=(2,)),
    Case("packed, windows", WINDOWS, layout="packed", batch=(2,)),
    Case("packed, bigbird", BIGBIRD, layout="packed"),
    Case("bias, windows", WINDOWS, bias="tensor", batch=(2,)),
    Case("bias function, windows", WINDOWS, bias="function", batch=(2,), heads=4, kv_heads=2),
    Case("bias, complete as edges", shuffled(ga.complete(7)), bias="tensor", batch=(2,)),
    Case("bias, windows as edges", shuffled(WINDOWS), bias="tensor, holes"),
    Case("bias, causal as edges", shuffled(ga.causal(7)), bias="tensor, dead row"),
    Case("bias, scattered blocks", SCATTERED, bias="tensor"),
    Case("bias, bigbird", BIGBIRD, bias="tensor", batch=(2,)),
    Case("bias, no edges", NONE, bias="tensor"),
    Case("bias function, no edges", NONE, bias="function"),
]
