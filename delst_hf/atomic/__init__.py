"""Writing so that a kill, a full disk or a second run loses nothing: files, folders, locks."""

from .files import check_file_output, check_folder_output, fsync, link_or_copy, write_file, write_text
from .folders import complete_or_nothing, recover
from .locks import BusyError, is_held, locked
from .processes import end_like_interrupted, end_with_parent

__all__ = [
    "BusyError",
    "check_file_output",
    "check_folder_output",
    "complete_or_nothing",
    "end_like_interrupted",
    "end_with_parent",
    "fsync",
    "is_held",
    "link_or_copy",
    "locked",
    "recover",
    "write_file",
    "write_text",
]
