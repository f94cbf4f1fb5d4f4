"""The page as a program: `delst demo` runs this file, and a Space of the Hub runs a copy of it.

Environment variables say what it shows: DELST_MODEL (folder or Hub id) and, to open a slide at the start, DELST_SLIDE, with
DELST_MPP where its file does not state the micrometres per pixel.
"""

import os

from delst_hf.demo import build_page

if __name__ == "__main__":
    mpp = os.environ.get("DELST_MPP")
    page = build_page(os.environ["DELST_MODEL"], os.environ.get("DELST_SLIDE"), float(mpp) if mpp else None)
    page.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        server_port=int(os.environ["GRADIO_SERVER_PORT"]) if "GRADIO_SERVER_PORT" in os.environ else None,
    )
