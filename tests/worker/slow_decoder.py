"""A decoder process that is slow to start, takes a picture, and is lost before it has answered."""

import os
import sys
import time

START_S, HOLD_S = 1.2, 0.5

if __name__ == "__main__":
    time.sleep(START_S)
    sys.stdout.buffer.write(bytes(17))  # ready, as `decoder_child.REPLY` packs it
    sys.stdout.buffer.flush()
    sys.stdin.buffer.read(1)
    time.sleep(HOLD_S)
    os.close(1)
    os.close(0)
    time.sleep(60)  # and does not end by itself
