"""For processes whose wall clock is off by ``CHAOS_CLOCK`` seconds: on their ``PYTHONPATH``, so that it comes first.

Not libfaketime: a child that is forked while a thread asks it for the time finds its mutex locked for ever.
"""

import os
import time

import time_machine

time_machine.travel(time.time() + int(os.environ["CHAOS_CLOCK"])).start()
