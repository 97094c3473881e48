"""Models of transformers run over graphs: `rewire` switches them in place, `restore` back.

Importing this registers "graphattn" as an attention implementation, so that
`from_pretrained(name, attn_implementation="graphattn")` works as `rewire(model)` does.
"""

from graphattn.hf.rewire import Report, restore, rewire

__all__ = ["Report", "restore", "rewire"]
