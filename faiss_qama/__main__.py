"""``python -m faiss_qama`` is the command line."""

from faiss_qama.cli import main

main()
