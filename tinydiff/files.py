"""Files are written whole or not at all."""

import errno
import os
from contextlib import suppress
from pathlib import Path


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace a file in one move, so that a reader finds the old one or the new one, and either of them whole.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        why = error.strerror or error
        message = f"Cannot write {path} ({why}): make room, or choose a folder that exists and is yours"
        raise OSError(error.errno or errno.EIO, message) from None
    finally:
        with suppress(OSError):
            temporary.unlink()
