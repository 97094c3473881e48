"""Language models of transformers: one trained here on bytes, or one that others trained."""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from checkpoints import publish
from support import Run
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

SIZES = ("steps", "seconds", "seed", "lr", "context", "dim", "depth", "heads", "batch")


def own_model(options: Any, text: Tensor) -> Any:
    """The GPT-2 that an earlier run kept, if it was trained as the options say, or a new one."""
    folder = Path(options.runs, options.name, "model")
    trained = {name: getattr(options, name) for name in SIZES}
    if (folder / "config.json").exists():
        model: Any = GPT2LMHeadModel.from_pretrained(folder)
        if model.config.trained == trained:
            print(f"the small GPT-2 that an earlier run trained, from {folder}")
            return model
    print(f"no --model: training a small GPT-2 on bytes of the standard library, for {folder}")
    set_seed(options.seed)
    model = GPT2LMHeadModel(byte_config(options))
    model.config.trained = trained
    run = Run(options, model, lr=options.lr)
    learn(run, text)
    if run.accelerator.is_main_process:
        model.save_pretrained(draft := folder.with_name("model-unfinished"))
        shutil.rmtree(folder, ignore_errors=True)
        publish(draft, folder)
    return model


def byte_config(options: Any) -> GPT2Config:
    return GPT2Config(
        vocab_size=256,
        n_positions=options.context,
        n_embd=options.dim,
        n_layer=options.depth,
        n_head=options.heads,
        tie_word_embeddings=False,  # checkpoints hold every weight
        initializer_range=options.dim**-0.5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )


def learn(run: Run, text: Tensor) -> None:
    """Train on pieces of as many tokens as the model has positions."""
    n, device = run.options.context, run.accelerator.device
    for _ in run:
        start = torch.randint(len(text) - n, (run.options.batch, 1))
        tokens = text[start + torch.arange(n + 1)].long().to(device)
        scores = run.model(tokens[:, :-1], use_cache=False).logits
        run.learn(F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten()))


def pretrained(name: str, text: Tensor) -> tuple[Any, Tensor]:
    """A model that others trained, and bytes as its tokens, (T,).

    Raises:
        OSError: If it can't be had.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(name)
        if model.config.vocab_size == 256:
            return model, text
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise OSError(
            f"--model {name} can't be had: it must be a folder with a causal language model and "
            "its tokenizer, as save_pretrained writes them, or a name on the hub, for which you "
            "must be online; without --model, a small GPT-2 is trained here"
        ) from error
    words = bytes(text.tolist()).decode(errors="replace")
    return model, torch.tensor(tokenizer(words, add_special_tokens=False)["input_ids"])
