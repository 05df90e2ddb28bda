"""The ClientApp: hands every message to the node's worker, and its answer back.

Flower starts a process for each message; this one imports neither torch nor transformers.
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedbias_plugin.hosts.flower.wire import from_records, to_records
from fedbias_plugin.hosts.flower.worker import ask

app = ClientApp()


@app.train()
@app.query()
def answer(message: Message, context: Context) -> Message:
    """What the worker answers: a description of the node, or a trained update."""
    request = from_records(message.content)
    request.meta["node_config"] = dict(context.node_config)
    return Message(to_records(ask(request, context.node_id, context.run_id)), reply_to=message)
