"""Pictures of graphs and of attention, drawn with matplotlib.

Every function takes a matplotlib `Axes` to draw on, `ax`, or makes a figure of fitting size, and
returns the axes: `ax.figure` shows it in a notebook, and `ax.figure.savefig(path)` keeps it. A
figure made here has a color bar where colors mean numbers; on axes that are passed, the room is the
caller's: `ax.figure.colorbar(ax.images[-1])` adds one. pyplot knows none of these figures.

Up to 200 nodes are drawn one by one. Of larger graphs, consecutive nodes are drawn together, and
the title says how many.
"""

from graphattn.viz.images import attention_over_image
from graphattn.viz.matrices import alignment, attention_matrix
from graphattn.viz.nodes import draw_attention, draw_graph
from graphattn.viz.text import graph_text

__all__ = [
    "alignment",
    "attention_matrix",
    "attention_over_image",
    "draw_attention",
    "draw_graph",
    "graph_text",
]
