"""The border between libraries and users: one line, with the file and the next step, whatever was raised."""

import argparse
import errno
import importlib
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from delst_hf import errors
from delst_hf.cli import main
from delst_hf.data.values import positive
from delst_hf.errors import messages_on_stderr

pytestmark = pytest.mark.fault("the border to libraries")


def caught(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def from_a_library():
    """Errors as libraries raise them: of classes that this package also uses, and of others."""
    import json

    import h5py
    import pandas as pd

    yield lambda: {}["cells"]
    yield lambda: pd.DataFrame({"x": [1]})["y"]
    yield lambda: json.loads("[" * 200_000)
    yield lambda: h5py.File(__file__, "r")
    yield lambda: 1 // 0
    yield lambda: None.shape
    yield lambda: [][3]
    yield lambda: b"\xff\xfe\xfa".decode()


@pytest.mark.parametrize("fail", list(from_a_library()))
def test_what_a_library_raises_becomes_a_sentence_with_the_file_and_keeps_its_cause(fail):
    def read():
        with errors.reading("spots.csv", "positions"):
            fail()

    error = caught(read)
    assert isinstance(error, ValueError) and error.__cause__ is not None
    line = errors.explain(error)
    assert line.startswith("cannot read the positions spots.csv: ") and line.endswith("download or write it again.")
    assert "\n" not in line and len(line) < 600


def test_what_this_package_says_passes_unchanged():
    def read():
        with errors.reading("outer.h5"), errors.reading("inner.h5"):
            positive("wide", "scalefactors_json.json: tissue_hires_scalef", "Correct it.")

    error = caught(read)
    assert errors.explain(error) == (
        "scalefactors_json.json: tissue_hires_scalef is 'wide'. Allowed: a positive number. Correct it."
    )


def test_memory_and_disk_keep_their_class():
    def no_memory():
        with errors.reading("he.png", "image"):
            bytearray(1 << 60)

    def no_file():
        with errors.reading("he.png", "image"):
            Path("/nowhere/spots.csv").read_text()

    assert "image he.png needs more memory" in errors.explain(caught(no_memory))
    assert isinstance(caught(no_memory), MemoryError)
    assert errors.explain(caught(no_file)).startswith("/nowhere/spots.csv: No such file or directory. Give")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        OSError(errno.ENOMEM, "Cannot allocate memory", "data.arrow"),
        ImportError("libx.so: failed to map segment from shared object"),
        ValueError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not execute a primitive"),
        ValueError(
            "Unable to convert output 'x' to tensor: Unable to allocate 576. KiB for an array with shape (48, 3)"
        ),
    ],
)
def test_memory_that_is_refused_is_told_as_that_whatever_says_so(error):
    """No file is damaged, and no disk is to be looked at."""

    def read():
        with errors.reading("model", "model"):
            {}.update([]) or (_ for _ in ()).throw(error)

    inside, outside = errors.explain(caught(read)), errors.explain(error)
    assert inside.startswith("the model model needs more memory than there is") and "fewer processes" in inside
    assert outside.startswith("memory ran out") and "a higher limit (ulimit -v)" in outside
    assert not errors.is_out_of_memory(ImportError("x.so: cannot allocate memory in static TLS block"))
    unknown = "could not create a primitive descriptor for a convolution forward propagation primitive"
    assert not errors.is_out_of_memory(RuntimeError(unknown))


def test_a_library_that_does_not_load_is_not_a_damaged_file():
    def load():
        importlib.import_module("a_codec_that_is_not_there")

    def read():
        with errors.reading("he.tif", "slide"):
            load()

    told = errors.explain(caught(read))
    assert told.startswith("cannot read the slide he.tif: No module named") and "damaged" not in told
    for one in (told, errors.explain(caught(load))):
        assert "No module named 'a_codec_that_is_not_there'. A package did not load" in one
        assert one.endswith("install it again, or use a machine with more memory.")


def test_a_library_that_says_how_to_install_it_is_not_called_broken():
    told = errors.explain(ImportError("You need to install `bitsandbytes`: `pip install -U bitsandbytes`"))
    assert told == "You need to install `bitsandbytes`: `pip install -U bitsandbytes`."


def test_an_error_of_ours_is_known_again_from_another_process():
    error = caught(lambda: positive("wide", "a.json: factor", "Correct it."))
    errors.mark_told(error)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  (what multiprocessing does)
    assert again.__traceback__ is None and errors.explain(again) == errors.explain(error)
    stranger = caught(lambda: {}["cells"])
    errors.mark_told(stranger)
    assert not errors.is_told(pickle.loads(pickle.dumps(stranger)))  # noqa: S301


def test_controls_and_line_breaks_of_names_are_not_printed():
    error = caught(lambda: positive("x", "a\n\x1b[31m\u202eb.json", "Correct it."))
    assert errors.explain(error).startswith("a \\x1b[31m\\u202eb.json is 'x'.")


@pytest.mark.parametrize(
    "error", [KeyError("high"), IndexError("list index out of range"), MemoryError(), RecursionError("deep")]
)
def test_a_command_says_in_one_line_what_it_did_not_expect(monkeypatch, capsys, error):
    def fail(_):
        {}.update([]) or (_ for _ in ()).throw(error)

    monkeypatch.setattr(
        "delst_hf.cli.parse_arguments", lambda _: argparse.Namespace(run=fail, debug=False, delst_command="doctor")
    )
    assert main(["doctor"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("delst: error: ")
    assert "--debug" in said[0] or "memory ran out" in said[0]


SCRIPT = """
import sys
from delst_hf.errors import run_script

def main():
    {}["spots"]

sys.exit(run_script(main, "pretrain.py"))
"""


def program(folder: Path, code: str) -> str:
    """A script of the name of our program, which is why the package loads the classes of transformers later, or not at all."""
    (folder / "delst").write_text(code)
    return str(folder / "delst")


def test_a_script_ends_in_one_line_and_shows_the_traceback_when_asked(tmp_path):
    script = program(tmp_path, SCRIPT)
    plain, debug = (
        subprocess.run([sys.executable, script, *more], capture_output=True, text=True) for more in ([], ["--debug"])
    )
    assert plain.returncode == 2 and len(plain.stderr.strip().splitlines()) == 1
    assert plain.stderr.startswith("pretrain.py: error: KeyError: 'spots'")
    assert "Traceback" in debug.stderr


@pytest.mark.parametrize(("words", "is_said"), [([], True), (["-q"], False), (["--quiet"], False)])
def test_a_script_says_whose_the_traceback_below_is(tmp_path, words, is_said):
    """`accelerate launch` ends with a traceback of its own launch, unless it is told to be quiet.

    The error is one of what is checked before libraries are loaded.
    """
    script = program(tmp_path, SCRIPT.replace('main, "pretrain.py"', 'print, "pretrain.py", check=main'))
    (tmp_path / "accelerate").write_text("import subprocess, sys\nsubprocess.run([sys.executable, sys.argv[-1]])")
    launch = [sys.executable, str(tmp_path / "accelerate"), "launch", *words, script]
    said = subprocess.run(launch, capture_output=True, text=True).stderr.strip().splitlines()
    assert said[0].startswith("pretrain.py: error: KeyError: 'spots'")
    assert ["accelerate launch -q leaves it out" in line for line in said[1:]] == [True] * is_said


def test_the_hub_client_retries_in_silence():
    client = logging.getLogger("huggingface_hub")
    before = client.level
    with messages_on_stderr():
        assert client.level == logging.ERROR
    assert client.level == before
    with messages_on_stderr(debug=True):
        assert client.level == before


def test_messages_and_tracebacks_hold_no_password_and_no_token(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "keyOfAlice")
    error = OSError("cannot reach http://alice:pa55word@hub.example with hf_PlantedSecret, keyOfAlice")
    for said in (errors.explain(error), errors.explain(ValueError(str(error)))):
        assert "http://hub.example" in said
        assert not [secret for secret in ("pa55word", "hf_Planted", "keyOfAlice") if secret in said]
    errors.show_traceback(OSError, error, None)
    said = capsys.readouterr().err
    assert "OSError: cannot reach http://hub.example with <left out>, <left out>" in said


PIPED = """
import sys
import delst_hf.cli as cli

def run(_):
    for line in range(int(sys.argv[1])):
        print("spot", line)

cli.parse_arguments = lambda _: cli.argparse.Namespace(run=run, debug=False, delst_command="doctor")
sys.exit(cli.main())
"""


@pytest.mark.parametrize("lines", [2, 100_000])
def test_whoever_reads_the_output_may_leave(lines, tmp_path):
    """`delst check DIR | head -1`: no error of ours and none of Python's at its end, and the status of SIGPIPE."""
    command = [sys.executable, program(tmp_path, PIPED), str(lines)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        writer.stdout.close()
        assert writer.stderr.read() == b""
    assert writer.returncode == 141


def test_an_interrupted_launch_says_whose_the_traceback_below_is(monkeypatch, capsys):
    """accelerate prints its own when Ctrl-C reaches it too, with -q as well."""

    def interrupted():
        raise KeyboardInterrupt("go on so.")

    monkeypatch.setattr(errors, "_launch_words", lambda: ["python", "/bin/accelerate", "launch", "-q", "pretrain.py"])
    assert errors.run_script(interrupted, "pretrain.py") == 130
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[0] == "pretrain.py: interrupted; go on so." and "own launch only" in lines[1] and len(lines) == 2
    monkeypatch.setattr(errors, "_launch_words", list)
    assert errors.run_script(interrupted, "pretrain.py") == 130
    assert capsys.readouterr().err.strip() == "pretrain.py: interrupted; go on so."
