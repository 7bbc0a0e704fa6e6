import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def two_ranks(tmp_path):
    """Run a script of this folder as two processes of one group; what rank 0 prints last, as JSON."""

    def run(script):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, Path(__file__).with_name(script)]
        ranks = [
            subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        try:
            outputs = [rank.communicate(timeout=400)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        assert [rank.returncode for rank in ranks] == [0, 0]
        return json.loads(outputs[0].splitlines()[-1])

    return run
