"""Files, folders and locks under kills at every step, full disks and second runs."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from faults import killed_at_every_event, run_in_child

from delst_hf.atomic import files, locks
from delst_hf.atomic.files import check_file_output, complete_or_nothing, recover, write_file, write_text
from delst_hf.atomic.locks import BusyError, locked

pytestmark = pytest.mark.fault("files and folders")


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file_is_old_or_new_at_every_kill(tmp_path):
    path = tmp_path / "genes.txt"
    seen = set()
    for _ in killed_at_every_event(lambda: write_text(path, "new\n" * 5000)):
        assert visible(tmp_path) == ["genes.txt"] or not seen, "the file is gone"
        text = path.read_text() if path.exists() else ""
        assert text in ("", "old", "new\n" * 5000)
        seen.add(text[:3])
        write_text(path, "old")
    assert path.read_text() == "new\n" * 5000
    assert seen == {"", "old", "new"}


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "card.md"
    write_text(path, "old")
    status = run_in_child(lambda: write_text(path, "x" * 100_000), file_limit=4096)
    assert os.waitstatus_to_exitcode(status) == 70
    assert [one.name for one in tmp_path.iterdir()] == ["card.md"]
    assert path.read_text() == "old"


def test_a_file_keeps_its_mode_its_link_and_what_is_no_file(tmp_path):
    target = tmp_path / "real.txt"
    target.write_text("old")
    target.chmod(0o640)
    (tmp_path / "link.txt").symlink_to(target)
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "through")
    reader.join(10)
    assert read == ["through"]


def test_an_exception_while_writing_leaves_nothing(tmp_path):
    def fail():
        with write_file(tmp_path / "deep" / "a.bin") as file:
            file.write(b"half")
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_file_that_cannot_be_written_is_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(IsADirectoryError, match="is a folder. Give the name of a file"):
        check_file_output(tmp_path)
    with pytest.raises(NotADirectoryError, match="file is a file, not a folder. Choose another name"):
        check_file_output(tmp_path / "file" / "deep" / "results.json")
    with pytest.raises(OSError, match="cannot be written: its name is too long. Allowed: 255 bytes"):
        check_file_output(tmp_path / ("x" * 300))
    with pytest.raises(OSError, match="cannot be written .*Choose a file in a folder that you may write to"):
        check_file_output("/proc/results.json")
    check_file_output(tmp_path / "new" / "deep" / "results.json")
    check_file_output("/dev/null")
    assert visible(tmp_path) == ["file"]


# --- folders --------------------------------------------------------------------------------------------------------


def make(output, text, **options):
    with complete_or_nothing(output, **options) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text(text)
        (folder / "b.txt").write_text(text)


def content(output):
    return {path.read_text() for path in output.rglob("*.txt")}, len(list(output.rglob("*.txt")))


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_old_or_new_at_every_kill(tmp_path, exchange, monkeypatch):
    if not exchange:
        monkeypatch.setattr(files, "_rename", only_plain_renames)
    output = tmp_path / "data"
    make(output, "old")
    seen = set()
    for _ in killed_at_every_event(lambda: make(output, "new")):
        if exchange:
            assert output.exists(), "nothing stands under the name"
        recover(output)
        assert content(output) in (({"old"}, 2), ({"new"}, 2))
        assert [path.name for path in tmp_path.iterdir()] == ["data"]
        seen |= content(output)[0]
        make(output, "old")
    assert content(output) == ({"new"}, 2)
    assert seen == {"old", "new"}


def only_plain_renames(source, target, flag):
    if flag == files._EXCHANGE:
        raise OSError(22, "Invalid argument")
    os.rename(source, target)


def test_what_appeared_during_the_work_is_not_replaced(tmp_path):
    output = tmp_path / "data"

    def work():
        with complete_or_nothing(output, replace=False) as folder:
            (folder / "a.txt").write_text("ours")
            output.mkdir()
            (output / "thesis.tex").write_text("years")

    with pytest.raises(
        FileExistsError, match="made by another program while this run was working; it is left unchanged"
    ):
        work()
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "thesis.tex"]


def test_a_check_right_before_the_exchange_is_heard(tmp_path):
    make(tmp_path / "data", "old")

    def check():
        raise FileExistsError("a stranger is in it")

    with pytest.raises(FileExistsError, match="stranger"):
        make(tmp_path / "data", "new", check=check)
    assert content(tmp_path / "data") == ({"old"}, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_empty_folder_is_free(tmp_path):
    (tmp_path / "data").mkdir()
    make(tmp_path / "data", "new", replace=False)
    assert content(tmp_path / "data") == ({"new"}, 2)


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_a_file_that_a_library_wrote_for_its_user_alone_is_for_whom_the_umask_allows(tmp_path, umask, expected):
    before = os.umask(umask)
    try:
        with complete_or_nothing(tmp_path / "model") as folder:
            os.close(os.open(folder / "model.safetensors", os.O_CREAT | os.O_WRONLY, 0o600))
            (folder / "run.sh").touch()
            (folder / "run.sh").chmod(0o700)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == {"model.safetensors": expected, "run.sh": 0o700 | expected}


# --- locks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path/data."""
    source = str(locks.__file__)
    code = (
        "import importlib.util, sys, time\n"
        f"spec = importlib.util.spec_from_file_location('locks', {source!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "with module.locked(sys.argv[1], 'dataset'):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "data")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def hold(output):
    with locked(output, "dataset"):
        pass


def test_a_second_run_is_refused_by_name(tmp_path, holder):
    with pytest.raises(
        BusyError, match=rf"dataset, .*data: process {holder.pid} on {socket.gethostname()}.*Wait for it"
    ):
        hold(tmp_path / "data")
    assert json.loads((tmp_path / ".data.lock").read_text())["pid"] == holder.pid
    with locked(tmp_path / "other"):
        pass


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, holder, how, caplog):
    holder.send_signal(how)
    holder.wait()
    with caplog.at_level(logging.WARNING), locked(tmp_path / "data"):
        assert f"of process {holder.pid}" in caplog.text
        assert json.loads((tmp_path / ".data.lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_one_process_holds_an_output_once(tmp_path):
    with locked(tmp_path / "data"):
        with pytest.raises(BusyError, match=f"process {os.getpid()}"), locked(tmp_path / "x" / ".." / "data"):
            pass
        assert (tmp_path / ".data.lock").exists()
    with locked(tmp_path / "data"):
        pass


def test_many_runs_hold_a_lock_one_after_the_other(tmp_path):
    """Twelve forks that all want it: at no time two hold it, and each gets it in the end."""
    log = tmp_path / "log"

    def work():
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                with locked(tmp_path / "data"):
                    with log.open("a") as file:
                        file.write("in\n")
                    time.sleep(0.005)
                    with log.open("a") as file:
                        file.write("out\n")
                    return
            except BusyError:
                time.sleep(0.002)
        raise TimeoutError

    children = []
    for _ in range(12):
        child = os.fork()
        if child == 0:
            code = 70
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 12
    assert log.read_text().split() == ["in", "out"] * 12


def test_a_disk_without_locks_goes_by_the_process_id(tmp_path, monkeypatch):
    import fcntl

    def unsupported(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    lock = tmp_path / ".data.lock"
    for record, busy in (
        ({"pid": 1, "host": socket.gethostname()}, True),
        ({"pid": 2**22 + 1, "host": socket.gethostname()}, False),
        ({"pid": 2**22 + 1, "host": "elsewhere"}, True),
        ({"pid": "x"}, False),
        ([], False),
    ):
        lock.write_text(json.dumps(record))
        if busy:
            with pytest.raises(BusyError, match="if it has ended already, delete .*data.lock"):
                hold(tmp_path / "data")
            assert lock.exists()
        else:
            with locked(tmp_path / "data"):
                assert json.loads(lock.read_text())["pid"] == os.getpid()
            assert not lock.exists()


_WORKER = """
import os, sys, time
from delst_hf.atomic.processes import end_like_interrupted
end_like_interrupted()
print(os.getpid(), flush=True)
try:
    time.sleep(60)
finally:
    open(sys.argv[1], "w").write("cleaned")
"""


@pytest.mark.fault("orphans")
@pytest.mark.parametrize(("name", "ends"), [("accelerate", True), ("shell", False)])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_ends_with_its_launcher_and_not_with_a_shell(tmp_path, name, ends, how):
    """accelerate's launcher of one process hands no signal on: what it started would train on for ever."""
    launcher, cleaned = tmp_path / name, tmp_path / "cleaned"
    launcher.write_text("import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])")
    command = [sys.executable, str(launcher), _WORKER, str(cleaned)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    worker = int(run.stdout.readline())
    run.send_signal(how)
    run.wait()
    run.stdout.close()
    try:
        deadline = time.monotonic() + (20 if ends else 3)
        while not cleaned.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert cleaned.exists() == ends
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
