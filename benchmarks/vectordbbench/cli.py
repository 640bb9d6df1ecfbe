"""The command ``vectordbbench faissqama``."""

from typing import Annotated, Unpack

import click
from vectordb_bench.backend.clients import DB
from vectordb_bench.cli.cli import CommonTypedDict, cli, click_parameter_decorators_from_typed_dict, run

from .config import FaissQamaConfig, FaissQamaIndexConfig


class FaissQamaTypedDict(CommonTypedDict):
    """Options of the command beside those that every client has."""

    path: Annotated[str, click.option("--path", required=True, help="Folder of the index")]
    base: Annotated[str, click.option("--base", default="Flat", show_default=True)]
    rescore: Annotated[str, click.option("--rescore", default="fp16", show_default=True)]
    bytes: Annotated[int | None, click.option("--bytes", type=int, help="Bytes per vector of the codes")]
    oversample: Annotated[float | None, click.option("--oversample", type=float, help="Candidates per neighbour")]
    nprobe: Annotated[int | None, click.option("--nprobe", type=int, help="Lists to search")]


@cli.command()
@click_parameter_decorators_from_typed_dict(FaissQamaTypedDict)
def FaissQama(**parameters: Unpack[FaissQamaTypedDict]) -> None:
    """Run the benchmark on faiss-qama."""
    settings = {name: parameters[name] for name in ("base", "rescore", "bytes", "oversample", "nprobe")}
    run(
        db=DB.FaissQama,
        db_config=FaissQamaConfig(db_label=parameters["db_label"], path=parameters["path"]),
        db_case_config=FaissQamaIndexConfig(**settings),
        **parameters,
    )
