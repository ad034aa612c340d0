"""The command ``clip-scgi ui``: serve the local page that shows datasets, runs and images.

`flows.cli.commands` imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from data.errors import ConfigError
from flows.cli.options import Home

PORT: Final = 8321


def ui(
    *,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, show_default=f"{PORT}, or a free one if it is taken", help="Port of the page."),
    ] = None,
    images: Annotated[
        list[Path],
        typer.Option(
            "--images",
            metavar="FOLDER",
            default_factory=list,
            show_default=False,
            help="Where to look for the images of a dataset, if they were moved. Repeatable.",
        ),
    ],
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    home: Home = None,
) -> None:
    """Look at datasets, captions and runs, search, and correct captions, on a page that only this machine reaches.

    Everything is read from the artifact root; nothing is sent anywhere. Ctrl-C ends the page.

    Example: clip-scgi ui
    """
    from flows.cli.inputs import artifact_store

    missing = next((folder for folder in images if not folder.is_dir()), None)
    if missing is not None:
        raise ConfigError(f"ui: --images {missing} is not a folder; give the folder of a dataset")
    store = artifact_store(home)
    if not (store.root / "stages").is_dir():
        raise ConfigError(
            f"ui: {store.root} does not contain artifacts; run a recipe first, such as `clip-scgi demo`, or name the "
            "artifact root with --home"
        )
    from flows.terminal import plain_console
    from flows.ui.app import create_app
    from flows.ui.server import ADDRESS, listen, open_browser, serve

    app = create_app(store, [folder.absolute() for folder in images])
    found = listen(port or PORT, exactly=port is not None)
    url = f"http://{ADDRESS}:{found.getsockname()[1]}"
    taken = f" (port {PORT} is taken)" if not url.endswith(f":{port or PORT}") else ""

    def started() -> None:
        plain_console().print(f"{url}{taken}; Ctrl-C ends the page", highlight=False, soft_wrap=True)
        if browser:
            open_browser(url)

    serve(app, found, started=started)
