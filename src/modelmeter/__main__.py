"""``python -m modelmeter``."""

from modelmeter.cli import main

main()
