"""The Prefect server of a site, which PREFECT_API_URL names: its address, and whether it answers."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from data.errors import ConfigError

VARIABLE: Final = "PREFECT_API_URL"
_ANSWER_SECONDS: Final = 5.0
_REMEDY: Final = "start that server, correct PREFECT_API_URL, or unset it to let each command start a server of its own"
_SETTINGS_REMEDY: Final = (
    "Correct or unset the PREFECT_ variables of the environment, and those in ~/.prefect/profiles.toml, .env,"
    " prefect.toml and pyproject.toml of this folder"
)


def api_url() -> str | None:
    """Return the address that Prefect is set to. Raises ConfigError if its variables or profiles are not valid."""
    from pydantic import ValidationError

    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates and not Path(certificates).is_file():  # Prefect cannot even be imported
        raise ConfigError(f"SSL_CERT_FILE={certificates} is not a file: correct or unset that environment variable")
    try:
        # Prefect reads its settings when it is first imported, and prints the values that are wrong.
        with redirect_stderr(StringIO()) as printed:
            from prefect.settings import get_current_settings

            url = get_current_settings().api.url
        sys.stderr.write(printed.getvalue())
        return url
    except ValidationError as error:
        # Without the values, which may be secret.
        found = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
        wrong = "; ".join(": ".join([*map(str, item["loc"]), item["msg"]]) for item in found)
    except ValueError as error:
        wrong = str(error)
    raise ConfigError(f"Prefect's settings cannot be used ({wrong}). {_SETTINGS_REMEDY}")


def check_server() -> None:
    """Raise ConfigError unless a Prefect API at PREFECT_API_URL answers within seconds and accepts the credentials."""
    url = str(api_url())
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"Prefect's server {masked(url)!r} is not an http address. {_advice(None)}")
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(httpx_settings={"timeout": _ANSWER_SECONDS}, sync_client=True) as client,
        ):
            client.raise_for_api_version_mismatch()
    except (httpx.HTTPError, httpx.InvalidURL, RuntimeError, ValueError, OSError) as error:
        # Prefect wraps most errors in a RuntimeError.
        cause = error if isinstance(error, httpx.HTTPError) else error.__cause__ or error
        raise ConfigError(f"Prefect's server at {masked(url)} {_reason(cause)}. {_advice(cause)}") from error


def masked(url: str) -> str:
    """Return `url` with asterisks for its user name, password and query, even if it is not well-formed."""
    user, has_user, rest = url.rpartition("@")
    scheme, separator, _ = user.partition("://")
    shown = (f"{scheme}{separator}" if separator else "") + ("***@" if has_user else "")
    address, has_query, _ = rest.partition("?")
    return f"{shown}{address}{'?***' if has_query else ''}"


def _reason(cause: BaseException) -> str:
    """Return what is wrong with the server, as the end of a sentence about it."""
    if isinstance(cause, httpx.HTTPStatusError):
        return f"answers with HTTP {cause.response.status_code} instead of a version"
    if isinstance(cause, httpx.TimeoutException):
        return f"does not answer within {_ANSWER_SECONDS:.0f} s"
    if isinstance(cause, httpx.TransportError | OSError):
        return f"cannot be reached ({str(cause) or type(cause).__name__})"
    if isinstance(cause, ValueError):
        return "is not a Prefect API: it does not answer with a version"
    return f"cannot be used ({cause})"


def _advice(cause: BaseException | None) -> str:
    """Return where the address comes from, and what to do."""
    where = "the environment" if os.environ.get(VARIABLE) else "a Prefect profile or configuration file"
    refused = isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code in (401, 403)
    remedy = "set PREFECT_API_AUTH_STRING or PREFECT_API_KEY to its credentials" if refused else _REMEDY
    return f"{VARIABLE} is set in {where}: {remedy}; such an address ends in /api"
