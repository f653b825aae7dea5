"""Processes that are killed at a random moment, for tests of what they leave behind."""

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable

from tqdm import tqdm


def killed(work: Callable[[], object], seconds: float) -> bool:
    """Run `work` in a forked process and kill it with SIGKILL after some seconds; whether it had finished.

    Forked, since importing takes longer than what is tested. Raises AssertionError if `work` raised: its traceback is
    on stderr.
    """
    pid = os.fork()
    if not pid:
        status = 1
        tqdm.set_lock(threading.RLock())  # its own one is shared with the parent, which would wait for it for ever
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert status == 0, f"the process ended with status {status}"
            return True
        time.sleep(min(0.001, max(0.0, deadline - time.monotonic())))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False
