"""From requests to samples that a server draws: by ids where it takes them, or else by text."""

from __future__ import annotations

from inferscale.flow import GenerateRequest
from inferscale.tree import Node

from ._remote_asking import Asking
from ._remote_ids import IdSample
from ._remote_reading import Reading
from ._remote_samples import RemoteSample
from ._remote_texts import TextSample
from .branch import Limits
from .opening import forced_ids, open_branches


def open_samples(request: GenerateRequest, asking: Asking, limits: Limits) -> list[RemoteSample]:
    """The samples of `request`, in order.

    Raises:
        ValueError: If the server cannot go on with what stands before them, or the node has no token ids.
    """
    node, reading, support = request.node, asking.reading, asking.support
    if reading is not None and _takes_ids(node, reading, asking):
        return [IdSample(branch) for branch in open_branches(request, reading.encode, reading.text, limits)]
    if (node.text or request.forced) and not support.continuing:
        raise ValueError(
            "this server's chat endpoint cannot go on with an answer that has begun: use "
            'endpoint="completions" (with tokenizer=... for the chat template), or a strategy of whole answers'
        )
    stops = support.stops if request.until == "step" else "hidden"
    forced = None if reading is None else len(forced_ids(request, reading.text))
    delimiter = asking.sampling.delimiter
    return [TextSample(request, index, limits, delimiter, stops, forced) for index in range(request.n)]


def _takes_ids(node: Node, reading: Reading, asking: Asking) -> bool:
    if asking.server.chat:
        return False
    takes = asking.support.ids(reading.encode(node.problem.prompt), reading.text.decode)
    if not takes and reading.chat:
        raise ValueError(
            "this server takes no token ids, so that the tokenizer's chat template cannot be used: choose "
            'endpoint="chat", or chat_template=False'
        )
    return takes
