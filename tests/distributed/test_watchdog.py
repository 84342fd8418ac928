"""Signs of life: those of the thread that entered the watchdog count, others would hide that it hangs."""

import threading

from vlm_r1.distributed.processes import World
from vlm_r1.distributed.watchdog import Watchdog


def test_a_thread_beside_the_main_one_does_not_speak_for_it():
    watchdog = Watchdog(World(), 10.0)
    with watchdog:
        watchdog._beat("update")
        thread = threading.Thread(target=watchdog._beat, args=("waiting for answers", 60.0))
        thread.start()
        thread.join()
        assert (watchdog.count, watchdog.doing, watchdog.allow) == (1, "update", 0.0)
        watchdog._beat("sync", 5.0)
        assert (watchdog.count, watchdog.doing, watchdog.allow) == (2, "sync", 5.0)
