"""devices.py FOLDER: what each process of the slice sees, and that all see one folder.

It is started on all workers at once.
"""

import sys
import time
from pathlib import Path

import jax
from jax.experimental import multihost_utils

jax.distributed.initialize()
mark = Path(sys.argv[1]) / ".setup"
token = str(multihost_utils.broadcast_one_to_all(int(time.time())))
if jax.process_index() == 0:
    mark.write_text(token)
multihost_utils.sync_global_devices("written")
if mark.read_text() != token:
    sys.exit(f"{mark.parent} is not one folder for all workers; is it one bucket?")
print(
    f"process {jax.process_index()} of {jax.process_count()}: "
    f"{jax.local_device_count()} of {jax.device_count()} devices, "
    f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
)
