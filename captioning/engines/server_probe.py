"""One short question to a captioning server, for checks before a run."""

from __future__ import annotations

from typing import Final, NamedTuple

from captioning.config import CaptionConfig
from data.errors import ClipScgiError

_SECONDS: Final = 5.0


class ServerAnswer(NamedTuple):
    """The answer of a server to the question for its models.

    models: their names; None if the server does not list them. refusal: why it rejects the request, or "". silence: why
    there is no usable answer, or "".
    """

    models: tuple[str, ...] | None = None
    refusal: str = ""
    silence: str = ""


def ask_server(config: CaptionConfig, seconds: float = _SECONDS) -> ServerAnswer:
    """Ask the server of `config` once for its models, for at most about `seconds`."""
    from captioning.engines.server_client import ChatClient, Unanswered

    brief = {"timeout": min(seconds, config.server.timeout), "attempts": 1}
    client = ChatClient(config.server.model_copy(update=brief))
    try:
        models = client.models()
    except Unanswered as error:
        return ServerAnswer(silence=str(error))
    except ClipScgiError as error:
        return ServerAnswer(refusal=str(error))
    finally:
        client.close()
    return ServerAnswer(models=None if models is None else tuple(models))
