"""A small BERT learns to fill in masked tokens of Python, attending over the graph that you choose.

    python examples/masked_lm.py --graph window
    python examples/masked_lm.py --graph bigbird --vocab 1024 --name words --seconds 600
    accelerate launch examples/masked_lm.py

The text is that of examples/lm.py, as bytes, or with --vocab in tokens that are learned from it
first. In files held out, 15% of the tokens are masked, and the model is compared with tokens
counted alone (unigram) and between the two beside them (neighbors), even where those are masked.
The picture in runs/masked_lm/ shows what is filled in, and what a masked token attends to.
"""

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from blanks import filled_in
from lm import load_text
from support import Run, add_training, parser, plans, positive
from torch import Tensor
from vocabulary import CLS, MASK, counted, framed, learn_tokens, scored, tokens_of

import graphattn as ga
from graphattn.models import BERT, mask_tokens
from graphattn.models.layers import init_weights
from graphattn.nn import Rotary, pre_norm

GRAPHS = {  # of the number of tokens, of which the first is [CLS]; add your own
    "complete": ga.complete,
    "window": lambda n: ga.sliding_window(n, n // 32),
    "bigbird": lambda n: ga.sliding_window(n, n // 32) | ga.hubs(n, [0]) | ga.expander(n, 4),
}


@torch.no_grad()
def evaluate(run: Run, graph: ga.Graph, chunks: Tensor, chosen: Tensor) -> dict[str, float]:
    """Bits and accuracy where chunks (N, n) are masked, shared out among the processes."""
    run.model.eval()
    device, total = run.accelerator.device, torch.zeros(3)
    batches = list(zip(chunks.split(64), chosen.split(64)))
    with run.accelerator.split_between_processes(batches) as own:
        for tokens, hidden in own:
            scores = run.model(tokens.masked_fill(hidden, MASK).to(device), graph).cpu()[hidden]
            found = scored(scores, tokens[hidden])
            total += len(scores) * torch.tensor([found["bits"], found["accuracy"], 1.0])
    total = torch.as_tensor(run.accelerator.reduce(total.to(device))).tolist()
    return {"bits": total[0] / total[2], "accuracy": total[1] / total[2]}


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, "masked_lm", steps=700)
    add_training(options, context=128, dim=128, depth=4, heads=4, batch=16, lr=5e-3)
    options.add_argument("--graph", choices=GRAPHS, default="window")
    options.add_argument("--text", metavar="FILE", help="learn from this file instead")
    options.add_argument("--vocab", type=positive, default=258, help="default 258, of bytes alone")
    options = options.parse_args(argv)

    n, size = options.context, options.vocab
    texts = [bytes(part.numpy()).decode(errors="replace") for part in load_text(options.text, n)]
    tokenizer = learn_tokens(texts[0], size)
    train, held_out = (tokens_of(text, tokenizer, n) for text in texts)
    chunks = framed(held_out.unfold(0, n - 1, n - 1))
    chunks = chunks[:: max(1, len(chunks) // 512)][:512]
    rule = {"vocab_size": size, "mask": MASK, "special": [CLS]}
    _, chosen = mask_tokens(chunks, **rule, generator=torch.Generator().manual_seed(0))
    graph = GRAPHS[options.graph](n)
    set_seed(options.seed)
    model = BERT(
        size,
        max_len=n,
        num_segments=1,
        dim=options.dim,
        depth=options.depth,
        heads=options.heads,
        dropout=0.0,
        residual=pre_norm,  # here and below as ModernBERT (Warner et al. 2024): it learns faster
        positions=Rotary(options.dim // options.heads),
        qk_norm=True,
    )
    init_weights(model, std=options.dim**-0.5)
    for part in (model.positions, model.segments):  # as loud as the tokens, they would drown them
        init_weights(part)

    run = Run(options, model, lr=options.lr)
    device = run.accelerator.device
    for step in run:
        start = torch.randint(len(train) - n + 2, (options.batch, 1))
        tokens = framed(train[start + torch.arange(n - 1)])
        seen, hidden = mask_tokens(tokens, **rule)
        scores = run.model(seen.to(device), graph)[hidden.to(device)]
        run.learn(F.cross_entropy(scores, tokens[hidden].to(device)))
        if (step + 1) % options.save_every == 0:
            run.log(**evaluate(run, graph, chunks[::8], chosen[::8]))

    found = counted(train, chunks, chosen, size)
    found[options.graph] = evaluate(run, graph, chunks, chosen)
    if run.accelerator.is_main_process:
        print(f"{int(chosen.sum()):,} masked tokens of held-out files")
        for name, row in found.items():
            print(f"  {name:10} {row['accuracy']:6.1%} right, {row['bits']:.2f} bits")
        picture = run.folder / "filled_in.png"
        accuracy, better = found[options.graph]["accuracy"], found["neighbors"]["accuracy"]
        run.finish(
            graphs=plans([graph], options.heads, options.dim // options.heads),
            result=f"{accuracy:.1%} of masked tokens filled in, {better:.1%} by neighbors counted",
            found=found,
            pictures=[filled_in(picture, model, graph, chunks, chosen, tokenizer)],
        )


if __name__ == "__main__":
    main()
