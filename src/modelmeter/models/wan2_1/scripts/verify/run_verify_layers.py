"""Verify every module.

``python -m modelmeter.models.wan2_1.scripts.verify.run_verify_layers --workload ID``
"""

from modelmeter.models.wan2_1.scripts.verify._command import run

if __name__ == "__main__":
    run("layers")
