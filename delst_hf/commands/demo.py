"""`delst demo`: serve the page on this machine, or write the files of a Space that shows it.

Nothing heavy is imported before the command runs.
"""

import argparse
import os
import runpy
import shutil
from pathlib import Path
from typing import Any

from ..atomic.files import check_folder_output, complete_or_nothing, write_text
from ..atomic.locks import writing
from ..markup import cell, yaml_header
from ..record import public_text
from .options import add_command


def add_demo(commands: Any) -> None:
    """Add `delst demo MODEL [SLIDE]`: a page in the browser with a slide, its maps, their reliability and similar spots.

    Serve a page (needs the extra delst-hf[demo]). Open a slide on it and type genes or a signature to see their map and its
    reliability over the tissue; click a position to see its patch, the nearest spots of the reference and where the patch lies
    in the Poincare disk. --space writes the files of a Space of the Hub that shows the same page.

    Examples:
        delst demo runs/toy/expression slide.svs
        delst demo USER/MODEL --space my-space
    """
    parser = add_command(commands, "demo", add_demo, _run_demo)
    parser.add_argument("model", metavar="MODEL", help="checkpoint: folder or Hub id, best with a head and a reference")
    parser.add_argument("slide", metavar="SLIDE", nargs="?", help="slide to open at the start")
    parser.add_argument("--mpp", type=float, help="micrometres per pixel of SLIDE (default: what its file states)")
    parser.add_argument("--port", type=int, metavar="N", help="port (default: the first free one from 7860)")
    parser.add_argument("--space", metavar="DIR", help="write the files of a Space here, and serve nothing")


def _run_demo(arguments: argparse.Namespace) -> None:
    app = Path(__file__).parents[1] / "demo" / "app.py"
    if arguments.space is not None:
        _write_space(Path(arguments.space), arguments.model, app)
        return
    if arguments.slide is not None and not Path(arguments.slide).exists():
        raise FileNotFoundError(
            f"no slide at {arguments.slide}. Give the path of an image, or leave it out and open one on the page."
        )
    os.environ["DELST_MODEL"] = arguments.model
    given = {"DELST_SLIDE": arguments.slide, "DELST_MPP": arguments.mpp, "GRADIO_SERVER_PORT": arguments.port}
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    # Without gradio's analytics, nothing leaves the machine.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    runpy.run_path(str(app), run_name="__main__")


def _write_space(folder: Path, model: str, app: Path) -> None:
    check_folder_output(folder)
    # A Space is public: a local folder is named in it without its path.
    named = public_text(model)
    header = yaml_header({"title": named.split("/")[-1], "sdk": "gradio", "app_file": "app.py"})
    about = f"Open an H&E slide and look at what {cell(named)} predicts for it."
    with writing(folder, "Space") as output:
        if output.exists() and any(output.iterdir()):
            raise FileExistsError(f"{folder} is not empty. Choose another folder (--space).")
        with complete_or_nothing(output, replace=False) as space:
            shutil.copyfile(app, space / "app.py")
            write_text(space / "requirements.txt", "delst-hf[demo]\n")
            write_text(space / "README.md", f"{header}\n{about} Made by `delst demo --space`.\n")
    print(
        f"space  {folder}: create a Space with the SDK gradio, upload these files, and set its variable DELST_MODEL to {model}"
    )
