"""A language model learns to write Python, byte by byte, attending over the graph that you choose.

    python examples/lm.py --graph causal
    python examples/lm.py --graph bigbird --text novel.txt --name novel --seconds 600
    accelerate launch examples/lm.py

The text is the source of the standard library of the Python that runs this; whole files are held
out before anything else happens. On them, the model is compared with bytes counted alone (unigram)
and after the byte before (bigram). Then it writes a sample. The picture in runs/lm/ shows what each
character of a line attends to.
"""

import math
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from heatmaps import attention_over_text
from support import Run, add_training, parser, plans
from torch import Tensor

import graphattn as ga
from graphattn.models.layers import init_weights

GRAPHS = {  # of the number of tokens; add your own, as long as no token hears a later one
    "causal": ga.causal,
    "window": lambda n: ga.causal(n) & ga.sliding_window(n, n // 8),
    "bigbird": lambda n: (
        ga.causal(n) & (ga.sliding_window(n, n // 16) | ga.hubs(n, [0, 1]) | ga.expander(n, 4))
    ),
}
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
LEFT_OUT |= {"encodings", "pydoc_data"}  # tables, many of them almost the same
MOST = 20_000_000  # bytes that are used


def load_text(path: str | None, context: int) -> tuple[Tensor, Tensor]:
    """Bytes to learn from and bytes held out, two uint8 tensors.

    Raises:
        ValueError: If there are too few of them for the context.
    """
    if path is None:
        path = sysconfig.get_paths()["stdlib"]
        files = sorted(Path(path).rglob("*.py"))
        files = [f for f in files if not LEFT_OUT & set(f.relative_to(path).parts)]
        pieces = [f.read_bytes() for f in files]
        texts = [b"".join(p for i, p in enumerate(pieces) if i % 20), b"".join(pieces[::20])]
    else:
        text = Path(path).read_bytes()
        texts = [text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]]
    for text, what in zip(texts, ("learn from", "hold out")):
        if len(text) <= context:
            raise ValueError(
                f"{path} leaves {len(text)} bytes to {what}, and a context of {context} needs at "
                f"least {context + 1}; take a longer text, or a smaller --context"
            )
    train, held_out = (torch.frombuffer(bytearray(t[:MOST]), dtype=torch.uint8) for t in texts)
    return train, held_out


def counted(train: Tensor, chunks: Tensor) -> dict[str, float]:
    """Bits per byte of chunks (N, n + 1) by a unigram and a bigram model, add-one smoothed."""
    before, after = chunks[:, :-1].long(), chunks[:, 1:].long()
    unigram = torch.bincount(train, minlength=256) + 1.0
    bigram = torch.bincount(256 * train[:-1].long() + train[1:], minlength=256**2) + 1.0
    bigram = bigram.view(256, 256)
    return {
        "unigram": -(unigram / unigram.sum())[after].log2().mean().item(),
        "bigram": -(bigram / bigram.sum(1, keepdim=True))[before, after].log2().mean().item(),
    }


@torch.no_grad()
def bits_per_byte(run: Run, graph: ga.Graph, chunks: Tensor) -> float:
    """Of the model on chunks (N, n + 1), shared out among the processes."""
    run.model.eval()
    device, bits = run.accelerator.device, torch.tensor(0.0)
    with run.accelerator.split_between_processes(list(chunks.long().split(64))) as own:
        for tokens in own:
            scores = run.model(tokens[:, :-1].to(device), graph).flatten(0, 1).cpu()
            bits += F.cross_entropy(scores, tokens[:, 1:].flatten(), reduction="sum") / math.log(2)
    bits = torch.as_tensor(run.accelerator.reduce(bits.to(device)))  # the sum over all processes
    return bits.item() / chunks[:, 1:].numel()


def write(model: ga.models.GPT, graph: ga.Graph, prompt: str, seed: int) -> str:
    """Go on from a prompt up to the end of the graph, drawing from the 20 likeliest bytes."""
    tokens = torch.tensor(list(prompt.encode()))
    options = {"max_new_tokens": graph.num_dst - len(tokens), "temperature": 0.8, "top_k": 20}
    (text,) = model.generate([tokens], graph, seed=seed, **options)
    return prompt + bytes(text.tolist()).decode(errors="replace")


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, "lm", steps=700)
    add_training(options, context=128, dim=128, depth=4, heads=4, batch=16, lr=5e-3)
    options.add_argument("--graph", choices=GRAPHS, default="causal")
    options.add_argument("--text", metavar="FILE", help="learn from this file instead")
    options.add_argument("--compile", action="store_true", help="with torch.compile")
    options = options.parse_args(argv)

    train, held_out = load_text(options.text, options.context)
    chunks = held_out.unfold(0, options.context + 1, options.context)  # they share end bytes
    chunks = chunks[:: max(1, len(chunks) // 1024)][:1024]
    graph = GRAPHS[options.graph](options.context)
    set_seed(options.seed)
    model = ga.models.GPT(256, dim=options.dim, depth=options.depth, heads=options.heads)
    init_weights(model, std=options.dim**-0.5)
    if options.compile:
        model.compile()

    run = Run(options, model, lr=options.lr)
    for step in run:
        start = torch.randint(len(train) - options.context, (options.batch, 1))
        tokens = train[start + torch.arange(options.context + 1)].long().to(run.accelerator.device)
        scores = run.model(tokens[:, :-1], graph)
        run.learn(F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten()))
        if (step + 1) % options.save_every == 0:
            run.log(held_out=bits_per_byte(run, graph, chunks[::8]))

    bits = {**counted(train, chunks), options.graph: bits_per_byte(run, graph, chunks)}
    if run.accelerator.is_main_process:
        print(f"bits per byte of {chunks[:, 1:].numel():,} held-out bytes")
        print("".join(f"  {name:10} {value:.3f}\n" for name, value in bits.items()))
        print(write(model, graph, "def ", options.seed))
        better = 1 - bits[options.graph] / bits["bigram"]
        run.finish(
            graphs=plans([graph], options.heads, options.dim // options.heads),
            result=f"{bits[options.graph]:.2f} bits per byte, {better:.0%} fewer than bigrams",
            bits_per_byte=bits,
            better=better,
            pictures=[attention_over_text(run.folder / "attention.png", model, graph, held_out)],
        )


if __name__ == "__main__":
    main()
