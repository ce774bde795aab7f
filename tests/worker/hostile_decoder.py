"""A decoder process whose pictures are orders to misbehave; started as the real one is."""

import ctypes
import os
import signal
import sys
import time

import numpy as np

from engines.decoded import Decoded
from tests.engines.pictures import dicom
from worker.decoder_child import Limits, Order, read, serve


def misbehave(content: bytes, order: Order) -> Decoded:  # noqa: PLR0912
    """Do what the bytes say; decode any others as the real decoder would."""
    match content.split():
        case [b"sleep", seconds]:
            time.sleep(float(seconds))
        case [b"spin"]:
            while True:
                pass
        case [b"allocate", mebibytes]:
            hoard = [np.ones(1 << 17) for _ in range(int(mebibytes))]
            return _answer(order, height=len(hoard))
        case [b"segfault"]:
            ctypes.string_at(0)
        case [b"abort"]:
            os.abort()
        case [b"exit"]:
            os._exit(0)
        case [b"raise"]:
            raise RuntimeError("patient 4711")
        case [b"kill", number]:
            os.kill(os.getpid(), getattr(signal, number.decode()))
            time.sleep(60)
        case [b"extra"]:
            sys.modules["pydicom"] = None  # type: ignore[assignment]  # as if it were not installed
            content = dicom(np.zeros((8, 8), np.uint8))
        case [b"patricide"]:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        case [b"forge", field, value]:
            return _answer(order)._replace(**{field.decode(): eval(value)})
        case [b"flood"]:
            return _answer(order)._replace(image=np.zeros((1, 64, 64), dtype=np.float32))
        case [b"pid"]:
            return _answer(order, width=os.getpid())
        case [b"fork"]:
            return _answer(order, height=1 + os.fork())
        case [b"write"]:
            print("noise on standard output", flush=True)
            os.write(2, b"noise on standard error")
    return read(content, order)


def _answer(order: Order, height: int = 8, width: int = 8) -> Decoded:
    image = np.zeros(order.wanted.dims, dtype=np.float32)
    return Decoded(image, height, width, "", "", "", "0" * 64, ())


if __name__ == "__main__":
    serve(misbehave, Limits(float(sys.argv[1]), int(sys.argv[2])))
