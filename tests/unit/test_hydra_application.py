"""ModelMeter inside a user's own Hydra application."""

import subprocess
import sys
from pathlib import Path

APPLICATION = """
import hydra
import modelmeter as mm

@hydra.main(version_base=None, config_path=None)
def run(config):
    print(mm.load("wan2.1-t2v-1.3b", "num_inference_steps=1", "guidance_scale=1").estimate()["transformer"].flops)
    print(hydra.core.global_hydra.GlobalHydra.instance().is_initialized())

run()
"""


def test_it_works_inside_a_hydra_main(tmp_path: Path) -> None:
    """A model loads inside a running Hydra application, whose own global state stays."""
    script = tmp_path / "application.py"
    script.write_text(APPLICATION)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["283001787777024", "True"]
