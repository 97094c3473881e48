"""What a trained GPT-2 loses, and how much faster it is, when its attention runs over a graph.

    python examples/rewire_gpt2.py
    python examples/rewire_gpt2.py --model gpt2
    accelerate launch examples/rewire_gpt2.py

--model is a checkpoint's folder, or a name on the hub. Without it a small GPT-2 of transformers is
trained first, on the bytes of the standard library, kept in runs/rewire_gpt2/model, and taken from
there the next time. Its attention is then rewired: causal, as it was trained; a window with sinks
(StreamingLLM, Xiao et al. 2024); and an expander with about as many edges. Nothing is learned after
that. The picture in runs/rewire_gpt2/ shows the loss on files held out, of the same tokens cut into
pieces of each length, up to --context or what the model has positions for, and how fast one piece
is read.
"""

import itertools
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from checkpoints import write_json
from lm import load_text
from pretrained import own_model, pretrained
from sizes import loss_and_speed
from support import add_training, parser, plans
from torch import Tensor

import graphattn as ga
from graphattn import hf

WIDTH, SINKS = 64, 4  # tokens
GRAPHS = {  # of the number of tokens; add your own, as long as no token hears a later one
    "causal": ga.causal,
    "window + sinks": lambda n: (
        ga.causal(n) & (ga.sliding_window(n, WIDTH - 1) | ga.hubs(n, range(min(SINKS, n))))
    ),
    "expander": lambda n: (ga.causal(n) & ga.expander(n, min(2 * WIDTH, n - 1))).with_self_loops(),
}
PIECES, ROUNDS = 32, 5  # of the longest length: for the loss, and of timing; more where shorter


@torch.no_grad()
def loss_of(model: Any, chunks: Tensor, length: int) -> float:
    """Nats per token of chunks (N, n + 1), read in pieces of a length that divides n."""
    total, pieces = 0.0, chunks.unfold(1, length + 1, length).flatten(0, 1)
    for tokens in pieces.long().split(chunks.shape[1] // length):
        tokens = tokens.to(model.device)
        scores = model(tokens[:, :-1], use_cache=False).logits.flatten(0, 1).float()
        total += F.cross_entropy(scores, tokens[:, 1:].flatten(), reduction="sum").item()
    return total / pieces[:, 1:].numel()


@torch.no_grad()
def speed_of(
    model: Any, graphs: dict[str, ga.Graph], tokens: Tensor, rounds: int
) -> dict[str, float]:
    """Tokens (1, n) a second in the fastest forward pass over each graph, in turns."""
    seconds = {name: [] for name in graphs}
    for _, (name, graph) in itertools.product(range(rounds), graphs.items()):
        hf.rewire(model, graph)
        for _ in range(2):  # the first finds out how to run
            start = time.perf_counter()
            model(tokens, use_cache=False, logits_to_keep=1).logits.cpu()
            last = time.perf_counter() - start
        seconds[name].append(last)
    return {name: tokens.numel() / min(times) for name, times in seconds.items()}


def measure(model: Any, chunks: Tensor) -> tuple[dict[str, dict], dict[str, dict]]:
    """Loss and speed of chunks (N, n + 1), by graph and by length; prints them as they come."""
    n, loss, speed = chunks.shape[1] - 1, defaultdict(dict), defaultdict(dict)
    print("tokens", *(f"{name:>22}" for name in GRAPHS))
    for length in (n >> k for k in reversed(range(6)) if n % 2**k == 0 and n >> k > 1):
        graphs = {name: make(length) for name, make in GRAPHS.items()}
        tokens = chunks[:1, :length].long().to(model.device)
        fast = speed_of(model, graphs, tokens, ROUNDS * n // length)
        for name, graph in graphs.items():
            hf.rewire(model, graph)
            loss[name][length], speed[name][length] = loss_of(model, chunks, length), fast[name]
        cells = (f"{loss[name][length]:9.3f} {fast[name]:8,.0f} t/s" for name in GRAPHS)
        print(f"{length:6}", *cells)
    print("        (loss in nats per token, and tokens a second of the fastest forward pass)")
    hf.restore(model)
    return loss, speed


def report(options: Any, model: Any, chunks: Tensor) -> None:
    """Print, draw and write down what rewiring changes."""
    n, config, folder = chunks.shape[1] - 1, model.config, Path(options.runs, options.name)
    before = loss_of(model, chunks, n)
    loss, speed = measure(model, chunks)
    restored = loss_of(model, chunks, n)
    print(f"loss at {n} tokens before rewiring {before:.4f}, and restored {restored:.4f}")
    faster = {name: speed[name][n] / speed["causal"][n] for name in GRAPHS if name != "causal"}
    words = [f"{name} {loss[name][n]:.3f} at {x:.2f} x the speed" for name, x in faster.items()]
    heads = config.num_attention_heads
    graphs = plans([make(n) for make in GRAPHS.values()], heads, config.hidden_size // heads)
    result = {
        "example": options.name,
        "model": options.model or "a small GPT-2, trained here",
        "graphs": graphs,
        "result": f"loss at {n} tokens: causal {loss['causal'][n]:.3f}, {', '.join(words)}",
        "before": before,
        "restored": restored,
        "loss": loss,
        "tokens_per_second": speed,
        "pictures": [loss_and_speed(folder, loss, speed)],
    }
    write_json(folder / "result.json", result)
    print(f"{result['result']}; see {folder}")


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, "rewire_gpt2", steps=500)
    add_training(options, context=1024, dim=64, depth=2, heads=2, batch=2, lr=1e-2)
    options.add_argument("--model", metavar="NAME", help="a folder, or a name on the hub")
    options = options.parse_args(argv)
    train, held_out = load_text(None, options.context)
    if options.model:
        model, tokens = pretrained(options.model, held_out[:1_000_000])
    else:
        model, tokens = own_model(options, train), held_out
    n = min(options.context, model.config.max_position_embeddings)
    chunks = tokens.unfold(0, n + 1, n)
    chunks = chunks[:: max(1, len(chunks) // PIECES)][:PIECES]
    if (accelerator := Accelerator()).is_main_process:
        report(options, model.to(accelerator.device).eval(), chunks)


if __name__ == "__main__":
    main()
