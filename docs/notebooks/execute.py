"""Execute notebooks, and save them with their outputs: `make notebooks`."""

from __future__ import annotations

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Execute the chosen notebooks; an error in a cell ends the program."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(HERE.glob("*.ipynb")))
    parser.add_argument("--out", type=Path, help="folder for the results, instead of in place")
    args = parser.parse_args()
    for path in args.notebooks:
        notebook = nbformat.read(path, as_version=4)
        # Times of execution would make every renewal a change.
        client = NotebookClient(
            notebook, record_timing=False, resources={"metadata": {"path": str(path.parent)}}
        )
        client.execute()
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path if args.out is None else args.out / path.name)


if __name__ == "__main__":
    main()
