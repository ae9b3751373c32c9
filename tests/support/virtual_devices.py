"""Eight virtual CPU devices, in a process of their own: JAX fixes their number when it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import sae_jax

CASES = Path(__file__).parent / "mesh_cases.py"


def on_eight_devices(case, *arguments):
    """What a case of `mesh_cases.py` finds."""
    root = Path(sae_jax.__file__).parents[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
        # Optimized less, programs are compiled in less time, and sum in the same order.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
    }
    command = [sys.executable, "-W", "error::UserWarning", CASES, case, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
