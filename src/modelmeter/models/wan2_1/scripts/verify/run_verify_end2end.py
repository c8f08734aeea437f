"""Verify a whole run.

``python -m modelmeter.models.wan2_1.scripts.verify.run_verify_end2end --workload ID``
"""

from modelmeter.models.wan2_1.scripts.verify._command import run

if __name__ == "__main__":
    run("end2end")
