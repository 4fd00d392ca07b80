"""The models of a run for other programs: an endpoint that speaks OpenAI's chat completions."""

from upq.serve.door import Door
from upq.serve.endpoint import Endpoint
from upq.serve.models import Offered, offered
from upq.serve.row import Row
from upq.serve.server import bound, is_local, run_server

__all__ = ["Door", "Endpoint", "Offered", "Row", "bound", "is_local", "offered", "run_server"]
